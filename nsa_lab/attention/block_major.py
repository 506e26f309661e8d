"""Selection that visits key blocks: each block meets all queries that chose it, many blocks in one product.

Every chosen block of a query is a slot, which gets a softmax of its own over the block's keys; a query's slots are
merged by their log-sum-exps. So the cost is that of the selected tokens and no token is copied per query. Queries are
taken so many at a time that their slots stay within PIECE_BYTES.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nsa_lab.attention import groups as pieces
from nsa_lab.partition import Context, Partition

VISIT_ROWS = 2**13
"""Slots of blocks that meet in one product; a block that more queries chose is a product of its own."""


@dataclass(frozen=True)
class Visits:
    """Blocks side by side, B of them; int64, padded by the number past the last of what is counted.

    slots, rows [B, R]: of the queries that chose the block, among [queries, groups, n] and [queries, groups].
    keys [B, K]: the block's tokens in time order, among [tokens, groups]. later [B, R, K] bool: keys after the query.
    """

    slots: Tensor
    rows: Tensor
    keys: Tensor
    later: Tensor


def selection_by_block(
    q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, context: Context, partition: Partition, scale: float
) -> Tensor:
    """reference.selection; every chosen block must hold a token at or before its query."""
    slot_bytes = blocks.shape[2] * q.shape[1] * q.shape[2] * 4
    rows = max(1, pieces.PIECE_BYTES // max(1, slot_bytes))
    outputs = [
        _BlockMajor.apply(list(_visits(chosen, place, partition)), chosen.shape[2], scale, part, k, v)
        for part, chosen, place in zip(q.split(rows), blocks.split(rows), context.query_index.split(rows), strict=True)
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _visits(blocks: Tensor, places: Tensor, partition: Partition) -> Iterator[Visits]:
    """The visits of `blocks` [r, G, n]; blocks that about as many queries chose stand side by side."""
    groups, number = blocks.shape[1], partition.num_blocks
    owner = (blocks + number * torch.arange(groups, device=blocks.device)[:, None]).flatten()
    slots = (blocks >= 0).flatten().nonzero()[:, 0]
    slots = slots[owner[slots].argsort(stable=True)]
    chosen = torch.bincount(owner[slots], minlength=groups * number)
    begin = chosen.cumsum(0) - chosen
    order = chosen.argsort(descending=True, stable=True)
    for first, last, most in _side_by_side(chosen[order].tolist()):
        own = order[first:last]
        at = torch.arange(most, device=blocks.device)
        slot = slots[(begin[own, None] + at).clamp(max=len(slots) - 1)]
        slot = slot.masked_fill(at >= chosen[own, None], blocks.numel())
        rows = torch.div(slot, blocks.shape[2], rounding_mode="floor")
        token = _tokens_of(own % number, partition)
        keys = token * groups + torch.div(own, number, rounding_mode="floor")[:, None]
        place = places[torch.div(rows, groups, rounding_mode="floor").clamp(max=len(places) - 1)]
        past = len(partition.block_id)
        yield Visits(slot, rows, keys.clamp(max=past * groups), token[:, None] > place[..., None])


def _side_by_side(sizes: list[int]) -> Iterator[tuple[int, int, int]]:
    """Of blocks with so many slots, descending: from which to which they meet in one product, and the most slots."""
    first = 0
    while first < len(sizes) and sizes[first]:
        last, most = first, sizes[first]
        while last < len(sizes) and 2 * sizes[last] >= most and (last - first) * most < VISIT_ROWS:
            last += 1
        yield first, last, most
        first = last


def _tokens_of(block: Tensor, partition: Partition) -> Tensor:
    """[B, K] the tokens of blocks [B] in time order, the number of tokens past the last."""
    past = len(partition.block_id)
    place = torch.arange(partition.max_length, device=block.device)
    at = (partition.offsets[block][:, None] + place).clamp(max=past - 1)
    token = at if partition.perm is None else partition.perm[at]
    return token.masked_fill(place >= partition.lengths[block][:, None], past)


class _BlockMajor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, visits: list[Visits], slots: int, scale: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        wide = torch.promote_types(q.dtype, torch.float32)
        groups, dim = k.shape[1:]
        heads, least = q.shape[1] // groups, torch.finfo(wide).min
        rows, keys, values = _padded(q, heads * dim, wide), _padded(k, dim, wide), _padded(v, dim, wide)
        count = len(q) * groups * slots
        out = torch.zeros(count + 1, heads * dim, dtype=wide, device=q.device)
        lse = torch.full((count + 1, heads), -torch.inf, dtype=wide, device=q.device)
        for visit in visits:
            logits = _logits(visit, _take(rows, visit.rows), _take(keys, visit.keys), heads, scale)
            peak = logits.amax(-1, keepdim=True).clamp_(min=least)
            weight = logits.sub_(peak).exp_()
            total = weight.sum(-1, keepdim=True)
            part = (weight @ _take(values, visit.keys)).div_(total.clamp(min=torch.finfo(wide).tiny))
            out.index_copy_(0, visit.slots.flatten(), part.view(-1, heads * dim))
            lse.index_copy_(0, visit.slots.flatten(), (peak + total.log()).view(-1, heads))
        lse = lse[:-1].view(len(q), groups, slots, heads)
        peak = lse.amax(2, keepdim=True).clamp_(min=least)
        share = (lse - peak).exp_()
        total = share.sum(2)
        merged = (share[..., None] * out[:-1].view(*lse.shape, dim)).sum(2)
        merged = merged / total.clamp(min=torch.finfo(wide).tiny)[..., None]
        both = torch.where(total > 0, peak[:, :, 0] + total.log(), 0)
        ctx.visits, ctx.slots, ctx.scale = visits, slots, scale
        ctx.save_for_backward(q, k, v, merged, both)
        return merged.flatten(1, 2).to(q.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        wide, (groups, dim) = out.dtype, k.shape[1:]
        heads = q.shape[1] // groups
        rows, keys, values = _padded(q, heads * dim, wide), _padded(k, dim, wide), _padded(v, dim, wide)
        delta = (grad.view(out.shape).to(wide) * out).sum(-1)
        grads, delta, lse = _padded(grad, heads * dim, wide), _padded(delta, heads, wide), _padded(lse, heads, wide)
        grad_k, grad_v = torch.zeros_like(keys), torch.zeros_like(values)
        grad_q = torch.zeros(len(q) * groups * ctx.slots + 1, heads * dim, dtype=wide, device=q.device)
        for visit in ctx.visits:
            own, own_keys, own_grads = _take(rows, visit.rows), _take(keys, visit.keys), _take(grads, visit.rows)
            weight = _logits(visit, own, own_keys, heads, ctx.scale).sub_(_per_head(lse, visit)).exp_()
            own, own_grads = (x.view(len(x), -1, dim) for x in (own, own_grads))
            inner = (own_grads @ _take(values, visit.keys).transpose(1, 2)).sub_(_per_head(delta, visit))
            inner.mul_(weight).mul_(ctx.scale)
            grad_q.index_copy_(0, visit.slots.flatten(), (inner @ own_keys).view(-1, heads * dim))
            # A block is visited once, so that its keys are written once.
            grad_k.index_copy_(0, visit.keys.flatten(), (inner.transpose(1, 2) @ own).flatten(0, 1))
            grad_v.index_copy_(0, visit.keys.flatten(), (weight.transpose(1, 2) @ own_grads).flatten(0, 1))
        grad_q = grad_q[:-1].view(*out.shape[:2], ctx.slots, -1).sum(2)
        found = zip((q, k, v), (grad_q, grad_k[:-1], grad_v[:-1]), strict=True)
        return None, None, None, *(grad.view(x.shape).to(x.dtype) for x, grad in found)


def _padded(x: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """x as rows [n, width], and a row of zeros after them, which the padding of visits reads."""
    flat = x.reshape(-1, width).to(dtype)
    return torch.cat([flat, flat.new_zeros(1, width)])


def _take(x: Tensor, rows: Tensor) -> Tensor:
    """x [n, width] at rows [B, R], [B, R, width]."""
    return x.index_select(0, rows.flatten()).view(*rows.shape, -1)


def _per_head(x: Tensor, visit: Visits) -> Tensor:
    """x [n, H/G] of each slot's query and head, [B, R * H/G, 1]."""
    return _take(x, visit.rows).flatten(1)[..., None]


def _logits(visit: Visits, rows: Tensor, keys: Tensor, heads: int, scale: float) -> Tensor:
    """[B, R * H/G, K] of rows [B, R, H/G * D] and keys [B, K, D]; -inf on padding and on keys after the query."""
    logits = (rows.view(len(rows), -1, keys.shape[2]) @ keys.transpose(1, 2)).mul_(scale)
    logits.view(len(rows), -1, heads, logits.shape[2]).masked_fill_(visit.later[:, :, None], -torch.inf)
    return logits
