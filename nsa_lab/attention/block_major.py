"""Selection that walks over key blocks: each block meets, once, all queries that chose it.

A query's partial softmax over each of its blocks is merged as it comes (online softmax), so that the cost is that
of the selected tokens and no token is copied per query.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nsa_lab.partition import Context, Partition


@dataclass(frozen=True)
class Visit:
    """One block of one group: its keys [n] and the query rows [r] that chose it."""

    group: int
    keys: Tensor
    rows: Tensor


def selection_by_block(
    q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, context: Context, partition: Partition, scale: float
) -> Tensor:
    """reference.selection; every chosen block must hold a token at or before its query."""
    return _BlockMajor.apply(list(_visits(blocks, partition)), context.query_index, scale, q, k, v)


def _visits(blocks: Tensor, partition: Partition) -> Iterator[Visit]:
    order = torch.arange(len(partition.block_id), device=blocks.device) if partition.perm is None else partition.perm
    offsets = partition.offsets.tolist()
    for group in range(blocks.shape[1]):
        row, slot = (blocks[:, group] >= 0).nonzero(as_tuple=True)
        block = blocks[row, group, slot]
        rows = row[block.argsort(stable=True)]
        counts = torch.bincount(block, minlength=partition.num_blocks).tolist()
        for number, chosen in enumerate(rows.split(counts)):
            if len(chosen):
                yield Visit(group, order[offsets[number] : offsets[number + 1]], chosen)


class _BlockMajor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, visits: list[Visit], places: Tensor, scale: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        wide = torch.promote_types(q.dtype, torch.float32)
        rows = q.unflatten(1, (k.shape[1], -1))
        peak = torch.full(rows.shape[:-1], -torch.inf, dtype=wide, device=q.device)
        total = torch.zeros_like(peak)
        out = torch.zeros(rows.shape, dtype=wide, device=q.device)
        for visit in visits:
            at = (visit.rows, visit.group)
            logits = _logits(visit, places, rows, k, scale)
            new_peak = torch.maximum(peak[at], logits.amax(-1))
            weight = (logits - new_peak[..., None]).exp()
            keep = (peak[at] - new_peak).exp()
            out[at] = out[at] * keep[..., None] + weight @ v[visit.keys, visit.group].to(wide)
            total[at] = total[at] * keep + weight.sum(-1)
            peak[at] = new_peak
        alive = total > 0
        out = torch.where(alive[..., None], out / total.clamp(min=torch.finfo(wide).tiny)[..., None], 0)
        lse = torch.where(alive, peak + total.clamp(min=torch.finfo(wide).tiny).log(), 0)
        ctx.visits, ctx.scale = visits, scale
        ctx.save_for_backward(places, q, k, v, out, lse)
        return out.flatten(1, 2).to(q.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None, Tensor, Tensor, Tensor]:
        places, q, k, v, out, lse = ctx.saved_tensors
        rows, grad = q.unflatten(1, (k.shape[1], -1)), grad.unflatten(1, (k.shape[1], -1)).to(out.dtype)
        grad_q, grad_k, grad_v = (torch.zeros(x.shape, dtype=out.dtype, device=q.device) for x in (rows, k, v))
        delta = (grad * out).sum(-1)
        for visit in ctx.visits:
            at, keys = (visit.rows, visit.group), (visit.keys, visit.group)
            weight = (_logits(visit, places, rows, k, ctx.scale) - lse[at][..., None]).exp()
            grad_out = grad[at]
            grad_logits = weight * (grad_out @ v[keys].to(out.dtype).T - delta[at][..., None]) * ctx.scale
            grad_q[at] += grad_logits @ k[keys].to(out.dtype)
            grad_k[keys] += grad_logits.flatten(0, 1).T @ rows[at].to(out.dtype).flatten(0, 1)
            grad_v[keys] += weight.flatten(0, 1).T @ grad_out.flatten(0, 1)
        return None, None, None, grad_q.flatten(1, 2).to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype)


def _logits(visit: Visit, places: Tensor, rows: Tensor, k: Tensor, scale: float) -> Tensor:
    """[r, H/G, n] in float32 or wider, -inf on keys after the query."""
    wide = torch.promote_types(k.dtype, torch.float32)
    logits = rows[visit.rows, visit.group].to(wide) @ k[visit.keys, visit.group].to(wide).T * scale
    return logits.masked_fill((visit.keys > places[visit.rows][:, None])[:, None], -torch.inf)
