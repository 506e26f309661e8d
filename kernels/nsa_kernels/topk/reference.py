"""The definition of `choose_blocks`: one query tile and one group at a time, over a dense score matrix."""

import torch
from torch import Tensor

from nsa_kernels.blocks import Blocks
from nsa_kernels.dense import begun, closed, of_sample, probabilities


@torch.no_grad()
def topk_reference(
    q: Tensor,
    pooled_k: Tensor,
    blocks: Blocks,
    *,
    scale: float,
    block_count: int,
    initial_blocks: int = 0,
    local_blocks: int = 1,
    token_budget: int | None = None,
    block_bias: Tensor | None = None,
    leader: Tensor | None = None,
) -> Tensor:
    """[Tq, G, block_count] int32 ascending, -1 past the last block; see `choose_blocks` (NSA, equations 9 to 12)."""
    groups, rows = pooled_k.shape[1], len(q)
    visible = closed(blocks)
    score = probabilities(q, pooled_k, visible[:, None], scale, block_bias)
    score = score.unflatten(1, (groups, -1)).sum(2).cpu()
    chosen = torch.full((rows, groups, block_count), -1, dtype=torch.int32)
    first_of_tile = list(range(rows)) if leader is None else leader.tolist()
    tiles: dict[int, list[int]] = {}
    for row, first in enumerate(first_of_tile):
        tiles.setdefault(first, []).append(row)
    visible, started, own = visible.cpu(), begun(blocks).cpu(), blocks.block_of_query.tolist()
    first_block = of_sample(blocks).int().argmax(1).tolist() if blocks.num_blocks else []
    lengths = blocks.offsets.diff().tolist()
    for first, members in tiles.items():
        last = members[-1]
        near = range(first_block[first], first_block[first] + initial_blocks)
        local = range(own[first] - local_blocks + 1, own[last] + 1) if local_blocks else range(0)
        forced = [j for j in started[last].nonzero().flatten().tolist() if j in near or j in local]
        for g in range(groups):
            total = score[members, g].sum(0).tolist()
            worth = [x / n if token_budget else x for x, n in zip(total, lengths, strict=True)]
            others = [j for j in visible[last].nonzero().flatten().tolist() if j not in forced]
            ranked = [*forced, *sorted(others, key=lambda j: (-worth[j], j))]
            best = sorted(_within(ranked, lengths, block_count, token_budget))
            chosen[members, g, : len(best)] = torch.tensor(best, dtype=torch.int32)
    return chosen.to(q.device)


def _within(ranked: list[int], lengths: list[int], count: int, budget: int | None) -> list[int]:
    """The head of `ranked` up to `count` blocks, before the first that would exceed the budget of tokens."""
    taken, tokens = [], 0
    for j in ranked[:count]:
        tokens += lengths[j]
        if budget is not None and tokens > budget:
            break
        taken.append(j)
    return taken
