"""Blocks by score per token while they fit a budget of tokens: for blocks of unequal length."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nsa_lab.attention.choice import Rule, first_slots, in_order, rank
from nsa_lab.errors import Problem
from nsa_lab.partition import longest_block


class TokenBudget(Rule):
    """The forced blocks, then the visible ones of the greatest score per token, while the lengths fit the budget.

    It stops at the first block that would exceed `token_budget`: a threshold on the ranking, so that a small block
    never gets in ahead of a better one. Equal scores per token go to the earlier block. A block counts in full, tokens
    after the query included.
    """

    @dataclass
    class Config(Rule.Config):
        """`token_budget`: tokens per query and group, forced blocks included."""

        token_budget: int | None = None

    scales = {**Rule.scales, "token_budget": "context"}

    @classmethod
    def problems(cls, config: Config, design: Any) -> Iterator[Problem]:
        forced = design.branches.selection.most_forced(design.partition.block_size)
        longest = longest_block(design.partition)
        if config.token_budget is None:
            yield Problem("token_budget", "is not set, but rule=token_budget needs it: tokens per query and group")
        elif config.token_budget < max(1, forced * longest):
            yield Problem(
                "token_budget",
                f"{config.token_budget} tokens do not hold the {forced} forced blocks of up to {longest} tokens each",
            )

    @classmethod
    def attended(cls, config: Config, design: Any) -> int:
        return config.token_budget or 0

    def plain(self, forced: set[int], score: dict[int, float], lengths: dict[int, int]) -> list[int]:
        chosen: list[int] = []
        worth = {block: value / lengths[block] for block, value in score.items()}
        tokens = 0
        for block in in_order(worth, forced, self.config.block_count):
            tokens += lengths[block]
            if tokens > self.config.token_budget:
                break
            chosen.append(block)
        return sorted(chosen)

    def choose(self, scores: Tensor, visible: Tensor, forced: Tensor, lengths: Tensor) -> Tensor:
        best = rank(scores / lengths[:, None, None], visible, forced)
        spent = lengths[:, None, None].expand_as(scores).gather(-1, best.indices).cumsum(-1)
        taken = (best.values > -torch.inf) & (spent <= self.config.token_budget)
        return first_slots(best.indices, taken, self.config.block_count)
