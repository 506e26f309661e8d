"""The best blocks by score (NSA, equation 11)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nsa_lab.attention.choice import Rule, first_slots, in_order, rank
from nsa_lab.errors import Problem


class TopN(Rule):
    """The forced blocks, then the best visible ones; equal scores go to the earlier block."""

    @classmethod
    def problems(cls, config: Rule.Config, design: Any) -> Iterator[Problem]:
        if design.branches.selection.token_budget is not None:
            yield Problem(
                "token_budget", "stands beside rule=top_n; set attention.branches.selection.rule=token_budget"
            )

    def plain(self, forced: set[int], score: dict[int, float], lengths: dict[int, int]) -> list[int]:
        return sorted(in_order(score, forced, self.config.block_count))

    def choose(self, scores: Tensor, visible: Tensor, forced: Tensor, lengths: Tensor) -> Tensor:
        best = rank(scores, visible, forced)
        return first_slots(best.indices, best.values > -torch.inf, self.config.block_count)
