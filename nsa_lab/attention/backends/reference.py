"""The definition of every attention op, one query at a time. Slow on purpose: the other backends are tested against it.

Shapes: q [Tq, H, D]; k, v [T, G, D]; pooled_k, pooled_v [N, G, D]; query head h reads key/value head h // (H / G).
Sources: VideoNSA (arXiv 2510.02295) section 2, NSA (arXiv 2502.11089) section 3.
"""

import torch
from torch import Tensor

from nsa_lab.attention.choice import BlockRule, Scorer
from nsa_lab.attention.ops import Backend
from nsa_lab.attention.query_tiles import query_tiles
from nsa_lab.partition import Context, Partition


class Reference(Backend):
    """One query at a time, slow on purpose: the other backends are tested against it."""

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
        outputs = []
        for row, place in enumerate(context.host_query_index):
            blocks = _closed_blocks(context, partition, place)
            outputs.append(
                _attend(
                    q[row],
                    pooled_k[blocks],
                    pooled_v[blocks],
                    scale,
                    None if block_bias is None else block_bias[blocks],
                )
            )
        return _stack(outputs, q)

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
        groups, lengths = pooled_k.shape[1], dict(enumerate(partition.lengths.tolist()))
        chosen = torch.full((len(q), groups, rule.block_count), -1, device=q.device)
        tiles, places = query_tiles(context, rule.query_tile), context.host_query_index
        for first in sorted(set(tiles.first.tolist())):
            last = int(tiles.last[first])
            closed = _closed_blocks(context, partition, places[last])
            forced = _forced_blocks(context, partition, places[first], places[last], rule)
            score = [dict.fromkeys(closed, 0.0) for _ in range(groups)]
            for row in range(first, last + 1):
                seen = _closed_blocks(context, partition, places[row])
                own_x, bias = None if x is None else x[row].detach(), None if block_bias is None else block_bias[seen]
                heads = q[row].detach().view(groups, -1, q.shape[-1])
                found = scorer.plain(own_x, heads, pooled_k[seen].detach(), bias, scale)
                for g, values in enumerate(found.tolist()):
                    for j, value in zip(seen, values, strict=True):
                        score[g][j] += value
            for g in range(groups):
                blocks = rule.rule.plain(forced, score[g], lengths)
                chosen[first : last + 1, g, : len(blocks)] = torch.tensor(blocks, dtype=torch.int64, device=q.device)
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
        outputs = []
        for row, place in enumerate(context.host_query_index):
            per_group = []
            for g in range(k.shape[1]):
                begin = int(context.sample_start[row])
                chosen = torch.isin(partition.block_id[begin : place + 1], blocks[row, g])
                keys = (begin + chosen.nonzero().flatten()).tolist()
                per_group.append(
                    _attend(
                        q[row].view(k.shape[1], -1, q.shape[-1])[g],
                        k[keys][:, g : g + 1],
                        v[keys][:, g : g + 1],
                        scale,
                    )
                )
            outputs.append(torch.cat(per_group))
        return _stack(outputs, q)

    def window(self, q: Tensor, k: Tensor, v: Tensor, context: Context, *, size: int, scale: float) -> Tensor:
        outputs = []
        for row, place in enumerate(context.host_query_index):
            first = max(int(context.sample_start[row]), place - size + 1)
            outputs.append(_attend(q[row], k[first : place + 1], v[first : place + 1], scale))
        return _stack(outputs, q)

    def dense(self, q: Tensor, k: Tensor, v: Tensor, context: Context, *, scale: float) -> Tensor:
        return self.window(q, k, v, context, size=len(k) + 1, scale=scale)


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """q [H, D] against k, v [n, G, D], grouped; zero where n = 0. [H, D]."""
    if len(k) == 0:
        return torch.zeros_like(q)
    q_grouped = q.view(k.shape[1], -1, q.shape[-1])
    logits = torch.einsum("ghd,ngd->ghn", q_grouped, k) * scale
    if bias is not None:
        logits = logits + bias
    return torch.einsum("ghn,ngd->ghd", logits.softmax(-1), v).reshape(q.shape)


def _blocks_of_sample(context: Context, partition: Partition, place: int) -> range:
    sample = int((context.cu_seqlens[:-1] <= place).sum()) - 1
    return range(int(partition.cu_blocks[sample]), int(partition.cu_blocks[sample + 1]))


def _closed_blocks(context: Context, partition: Partition, place: int) -> list[int]:
    return [j for j in _blocks_of_sample(context, partition, place) if partition.block_end[j] <= place]


def _forced_blocks(context: Context, partition: Partition, first: int, last: int, rule: BlockRule) -> set[int]:
    blocks = _blocks_of_sample(context, partition, last)
    own_first, own_last = int(partition.block_id[first]), int(partition.block_id[last])
    local = [j for j in blocks if rule.local_blocks and own_first - rule.local_blocks < j <= own_last]
    return {j for j in [*blocks[: rule.initial_blocks], *local] if partition.block_start[j] <= last}


def _stack(outputs: list[Tensor], q: Tensor) -> Tensor:
    return torch.stack(outputs) if outputs else q * 0
