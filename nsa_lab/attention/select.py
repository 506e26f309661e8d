"""From scores to block lists: scorer -> rule -> blocks. A new scorer or rule is a function and one line in its dict.

A scorer sees a group of U samples with C query rows each: q [U, C, G, H/G, D], pooled_k [U, M, G, D] and which
blocks each row sees [U, C, M]; it returns scores [U, C, G, M], higher is better. A rule turns scores, forced blocks
and block lengths [U, M] into block numbers [U, C, G, block_count], -1 past the last one. Scores carry no gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Scorer = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]


@dataclass(frozen=True)
class BlockRule:
    """How scores become blocks: `kind` names the function in RULES, forced blocks count towards `block_count`.

    `token_budget`, in tokens, is what the rule of that name may spend. query_tile: how many neighbouring queries of a
    frame share one choice, made of their scores' sum. Above 1 a query's blocks depend on later queries of its tile, so
    that the layer is causal frame by frame and not token by token.
    """

    block_count: int
    initial_blocks: int = 0
    local_blocks: int = 1
    kind: str = "top_n"
    token_budget: int | None = None
    query_tile: int = 1


def compression_scores(q: Tensor, pooled_k: Tensor, visible: Tensor, block_bias: Tensor | None, scale: float) -> Tensor:
    """The compression probability summed over the group's heads (NSA eq. 9-10), [U, C, G, M] float32 or wider."""
    logits = torch.einsum("ucghd,umgd->ucghm", q, pooled_k) * scale
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if block_bias is not None:
        logits = logits + block_bias[:, None, None, None]
    hidden = ~visible[:, :, None, None]
    return logits.masked_fill(hidden, torch.finfo(logits.dtype).min).softmax(-1).masked_fill(hidden, 0).sum(3)


def top_n(scores: Tensor, visible: Tensor, forced: Tensor, lengths: Tensor, rule: BlockRule) -> Tensor:
    """The forced blocks, then the best visible ones; equal scores go to the earlier block."""
    best = _rank(scores, visible, forced)
    return _first_slots(best.indices, best.values > -torch.inf, rule.block_count)


def token_budget(scores: Tensor, visible: Tensor, forced: Tensor, lengths: Tensor, rule: BlockRule) -> Tensor:
    """The forced blocks, then the visible ones of the greatest score per token, while the lengths fit the budget.

    It stops at the first block that would exceed `rule.token_budget`: a threshold on the ranking, so that a small
    block never gets in ahead of a better one. Equal scores per token go to the earlier block. A block counts in full,
    tokens after the query included.
    """
    assert rule.token_budget is not None
    best = _rank(scores / lengths[:, None, None], visible, forced)
    spent = lengths[:, None, None].expand_as(scores).gather(-1, best.indices).cumsum(-1)
    return _first_slots(best.indices, (best.values > -torch.inf) & (spent <= rule.token_budget), rule.block_count)


def _rank(scores: Tensor, visible: Tensor, forced: Tensor) -> Any:
    """Blocks in descending order (`indices`), forced ones first (`values` inf), what no row sees last (-inf)."""
    ranked = scores.masked_fill(~visible[:, :, None], -torch.inf).masked_fill(forced[:, :, None], torch.inf)
    return ranked.sort(dim=-1, descending=True, stable=True)


def _first_slots(number: Tensor, taken: Tensor, count: int) -> Tensor:
    """The first `count` of the ranked block numbers where `taken`, ascending, -1 past the last one."""
    last = number.shape[-1]
    number = number[..., :count].masked_fill(~taken[..., :count], last).sort(dim=-1).values
    return number.masked_fill(number == last, -1)


SCORERS: dict[str, Scorer] = {"compression": compression_scores}
Rule = Callable[[Tensor, Tensor, Tensor, Tensor, BlockRule], Tensor]
RULES: dict[str, Rule] = {"top_n": top_n, "token_budget": token_budget}
