"""The ops of `reference` in vectorised PyTorch: any device, forward and backward, memory bounded by PIECE_BYTES.

Query rows are cut into pieces, so that nothing of size Tq x T is ever held.
"""

import logging
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from nsa_lab.attention.block_major import selection_by_block
from nsa_lab.attention.choice import BlockRule, Scorer, fitting
from nsa_lab.attention.groups import CAUSAL_ROWS, Group, cut_rows, group_pieces, rows_that_fit
from nsa_lab.attention.ops import Backend
from nsa_lab.attention.piecewise import over_groups
from nsa_lab.attention.query_tiles import QueryTiles, query_tiles
from nsa_lab.partition import Context, Partition

VISITS_COST = 1_000_000
"""Visits to blocks cost as much as masking this many (query, key, head) triples before the first one, on a CPU."""
VISIT_PER_MASK = 2.5
"""How many times more a (query, key, head) triple costs in a visit than under a mask; measured likewise."""

log = logging.getLogger(__name__)
_said: set[str] = set()


class Torch(Backend):
    """Vectorised PyTorch on any device."""

    def why_not(self, device: torch.device, named: bool) -> str | None:
        return None

    def compression(
        self,
        q: Tensor,
        pooled_k: Tensor,
        pooled_v: Tensor,
        context: Context,
        partition: Partition,
        *,
        scale: float,
        block_bias: Tensor | None = None,
    ) -> Tensor:
        def piece(group: Group, q: Tensor, pooled_k: Tensor, pooled_v: Tensor) -> Tensor:
            bias = None if block_bias is None else group.take_keys(block_bias)
            visible = _visible(group, group.take_rows(context.query_index), partition)
            return _attend(q, pooled_k, pooled_v, visible[:, None], scale, bias)

        return over_groups(piece, _block_groups(q, context, partition), q, pooled_k, pooled_v)

    def select_blocks(
        self,
        q: Tensor,
        pooled_k: Tensor,
        context: Context,
        partition: Partition,
        *,
        scale: float,
        scorer: Scorer,
        rule: BlockRule,
        x: Tensor | None = None,
        block_bias: Tensor | None = None,
    ) -> Tensor:
        groups = pooled_k.shape[1]
        chosen = torch.full((len(q), groups, rule.block_count), -1, device=q.device)
        tiles = query_tiles(context, rule.query_tile)
        with torch.no_grad():
            for group in _block_groups(q, context, partition, tiles if rule.query_tile > 1 else None):
                visible = _visible(group, group.take_rows(context.query_index), partition)
                rows = group.take_rows(q).unflatten(2, (groups, -1))
                bias = None if block_bias is None else group.take_keys(block_bias)
                own_x = group.take_rows(x) if x is not None and scorer.needs_x else None
                scores = scorer(own_x, rows, group.take_keys(pooled_k), visible, bias, scale)
                first, last = (context.query_index[group.take_rows(t)] for t in (tiles.first, tiles.last))
                if rule.query_tile > 1:
                    scores = _sum_over_tiles(scores, group, tiles)
                    visible = _visible(group, last, partition)
                forced = _forced(group, first, last, partition, rule)
                local = rule.rule.choose(scores, visible, forced, group.take_keys(partition.lengths))
                first_block = group.keys[:, :1, None, None]
                number = torch.where(local < 0, local, local + first_block)
                chosen[group.flat_rows(group.rows), :, : number.shape[-1]] = group.flat_rows(number)
        return chosen

    def selection(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        blocks: Tensor,
        context: Context,
        partition: Partition,
        *,
        scale: float,
    ) -> Tensor:
        blocks = fitting(blocks, context, partition)
        # In long samples blocks are visited, in short ones what was not selected is masked.
        pairs = sum((end - begin) ** 2 for _, _, begin, end in context.spans) * q.shape[1]
        selected = len(q) * blocks.shape[-1] * partition.max_length * q.shape[1]
        if pairs > VISITS_COST + VISIT_PER_MASK * selected:
            return selection_by_block(q, k, v, blocks, context, partition, scale)
        return _selection_masked(q, k, v, blocks, context, partition, scale)

    def window(self, q: Tensor, k: Tensor, v: Tensor, context: Context, *, size: int, scale: float) -> Tensor:
        if size >= len(k):
            return self.dense(q, k, v, context, scale=scale)
        max_rows = min(max(size, 64), rows_that_fit(8 * 2 * size))
        return _banded(q, k, v, context, size, max_rows, scale)

    def dense(self, q: Tensor, k: Tensor, v: Tensor, context: Context, *, scale: float) -> Tensor:
        if len(q) == len(k):  # every token is a query: one causal call per sample and no mask
            return _causal(q, k, v, context, scale)
        return _banded(q, k, v, context, len(k) + 1, rows_that_fit(8 * _longest(context)), scale)


def _causal(q: Tensor, k: Tensor, v: Tensor, context: Context, scale: float) -> Tensor:
    outputs = []
    repeat = q.shape[1] // k.shape[1]
    for _, _, begin, end in context.spans:
        rows, keys, values = (x[begin:end].transpose(0, 1)[None] for x in (q, k, v))
        keys, values = (x.repeat_interleave(repeat, 1) for x in (keys, values))
        with _preferring_cudnn(q.device):
            out = F.scaled_dot_product_attention(rows, keys, values, is_causal=True, scale=scale)
        outputs.append(out[0].transpose(0, 1))
    return torch.cat(outputs) if outputs else q * 0


def _preferring_cudnn(device: torch.device) -> AbstractContextManager[None]:
    """On a GPU cuDNN's attention first, at 32K tokens on Hopper 0.6 of flash's time; then PyTorch's others."""
    if device.type != "cuda":
        return nullcontext()
    if not _said:
        log.info("dense attention on cuda: cuDNN where it takes the call, else flash, memory-efficient, math")
        _said.add("cudnn")
    order = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
    return sdpa_kernel(list(order), set_priority=True)


def _banded(q: Tensor, k: Tensor, v: Tensor, context: Context, size: int, max_rows: int, scale: float) -> Tensor:
    def key_range(sample: int, first: int, last: int) -> tuple[int, int]:
        return max(context.spans[sample][2], first - size + 1), last + 1

    def piece(group: Group, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        place = group.take_rows(context.query_index)[:, :, None]
        keys = group.keys[:, None]
        seen = (keys >= 0) & (keys <= place) & (keys > place - size)
        return _attend(q, k, v, seen[:, None], scale)

    groups = group_pieces(cut_rows(context, key_range, max_rows), lambda keys: 8 * keys, q.device)
    return over_groups(piece, groups, q, k, v)


def _selection_masked(
    q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, context: Context, partition: Partition, scale: float
) -> Tensor:
    def key_range(sample: int, first: int, last: int) -> tuple[int, int]:
        return context.spans[sample][2], last + 1

    def piece(group: Group, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        block_of_key = group.take_keys(partition.block_id)
        first_block = block_of_key.amin(1)
        count = int((block_of_key.amax(1) - first_block).max()) + 1
        local = (group.take_rows(blocks) - first_block[:, None, None, None]).clamp(-1, count).transpose(1, 2) + 1
        chosen = q.new_full((*local.shape[:3], count + 2), -torch.inf).scatter(3, local, 0.0)
        chosen[..., 0] = -torch.inf  # where -1 went: no block
        block = (block_of_key - first_block[:, None] + 1)[:, None, None].expand(*local.shape[:3], -1)
        later = (group.keys[:, None] < 0) | (group.keys[:, None] > group.take_rows(context.query_index)[:, :, None])
        alive = (local > 0).any(3)  # a chosen block has a key at or before its query
        bias = chosen.gather(3, block).masked_fill_(later[:, None], -torch.inf).masked_fill_(~alive[..., None], 0.0)
        return _attend_biased(q, k, v, bias, scale) * _by_head(alive, q)

    row_bytes = 6 * k.shape[1]
    longest = _longest(context)
    rows = min(rows_that_fit(row_bytes * longest), max(CAUSAL_ROWS, longest // 8))
    pieces = cut_rows(context, key_range, rows)
    return over_groups(piece, group_pieces(pieces, lambda keys: row_bytes * keys, q.device), q, k, v)


def _longest(context: Context) -> int:
    return max((end - begin for _, _, begin, end in context.spans), default=0)


def _block_groups(q: Tensor, context: Context, partition: Partition, tiles: QueryTiles | None = None) -> list[Group]:
    in_time = partition.perm is None and q.device.type == "cpu"  # elsewhere the host would wait

    def block_range(sample: int, first: int, last: int) -> tuple[int, int]:
        begin, end = partition.host_cu_blocks[sample], partition.host_cu_blocks[sample + 1]
        return begin, int(partition.block_id[last]) + 1 if in_time else end

    spans = list(zip(partition.host_cu_blocks[:-1], partition.host_cu_blocks[1:], strict=True))
    row_bytes = 4 * q.shape[1]
    max_rows = rows_that_fit(row_bytes * max((end - begin for begin, end in spans), default=1))
    if in_time:
        max_rows = min(max_rows, max(4 * CAUSAL_ROWS, _longest(context) // 8))
    return group_pieces(cut_rows(context, block_range, max_rows, tiles), lambda blocks: row_bytes * blocks, q.device)


def _visible(group: Group, place: Tensor, partition: Partition) -> Tensor:
    """[U, C, M] bool: the block has ended at or before the key at `place` [U, C]."""
    return (group.keys >= 0)[:, None] & (group.take_keys(partition.block_end)[:, None] <= place[:, :, None])


def _sum_over_tiles(scores: Tensor, group: Group, tiles: QueryTiles) -> Tensor:
    """Each row's scores [U, C, G, M] replaced by the sum over its query tile, added up in the order of the queries."""
    begin = group.rows[:, :1]
    first, last = (group.take_rows(x) - begin for x in (tiles.first, tiles.last))
    total = torch.zeros_like(scores)
    for i in range(int((tiles.last - tiles.first).max()) + 1):
        row = (first + i).clamp(0, scores.shape[1] - 1)[:, :, None, None].expand_as(scores)
        total += scores.gather(1, row).masked_fill((first + i > last)[:, :, None, None], 0)
    return total


def _forced(group: Group, first: Tensor, last: Tensor, partition: Partition, rule: BlockRule) -> Tensor:
    """[U, C, M] bool: among the sample's first blocks, or among the last ones that end with the query's own.

    first, last [U, C]: the keys of the first and the last query of each query's tile.
    """
    number = torch.arange(group.keys.shape[1], device=last.device)
    begun = (group.keys >= 0)[:, None] & (group.take_keys(partition.block_start)[:, None] <= last[:, :, None])
    own_first, own_last = (partition.block_id[x][:, :, None] - group.keys[:, :1, None] for x in (first, last))
    local = (number <= own_last) & (number > own_first - rule.local_blocks) & (rule.local_blocks > 0)
    return begun & (local | (number < rule.initial_blocks))


def _attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """q [U, C, H, D] against k, v [U, K, G, D]; seen [U, 1 or G, C, K]; bias [U, K] on the logits. [U, C, H, D].

    A row that sees nothing gives zero and takes no gradient.
    """
    alive = seen.any(-1)
    mask = seen | ~alive[..., None]
    if bias is not None:
        mask = torch.where(mask, bias[:, None, None].to(q.dtype), -torch.inf)
    return _attend_biased(q, k, v, mask, scale) * _by_head(alive, q)


def _by_head(x: Tensor, q: Tensor) -> Tensor:
    """x [U, G, C] for each head of q [U, C, H, D], [U, C, H, 1]."""
    return x.repeat_interleave(q.shape[2] // x.shape[1], 1).transpose(1, 2)[..., None]


def _attend_biased(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """q [U, C, H, D] against k, v [U, K, G, D]; bias [U, 1 or G, C, K] bool or on the logits. [U, C, H, D]."""
    groups = k.shape[2]
    rows = q.unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4)
    keys, values = (x.transpose(1, 2)[:, :, None].expand(-1, -1, rows.shape[2], -1, -1) for x in (k, v))
    mask = bias.expand(-1, groups, -1, -1)[:, :, None]
    shape = rows.shape
    rows, keys, values, mask = (x.flatten(0, 1) for x in (rows, keys, values, mask))
    out = F.scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=scale)
    return out.view(shape).permute(0, 3, 1, 2, 4).flatten(2, 3)
