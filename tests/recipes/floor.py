"""A rule: the best blocks whose score is a share of the best one's at least."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nsa_lab.attention.choice import Rule, first_slots, in_order, rank
from nsa_lab.errors import Problem


class Floor(Rule):
    @dataclass
    class Config(Rule.Config):
        """Blocks of at least `floor_share` of the best visible score, at most `block_count`."""

        floor_share: float = 0.5

    @classmethod
    def problems(cls, config: Config, design: Any) -> Iterator[Problem]:
        if not 0 <= config.floor_share <= 1:
            yield Problem("floor_share", f"{config.floor_share} is outside 0 to 1")

    def plain(self, forced: set[int], score: dict[int, float], lengths: dict[int, int]) -> list[int]:
        least = self.config.floor_share * max(score.values(), default=0.0)
        good = {block: value for block, value in score.items() if value >= least}
        return sorted(in_order(good, forced, self.config.block_count))

    def choose(self, scores: Tensor, visible: Tensor, forced: Tensor, lengths: Tensor) -> Tensor:
        best = scores.masked_fill(~visible[:, :, None], 0).amax(-1, keepdim=True)
        good = visible[:, :, None] & (scores >= self.config.floor_share * best) | forced[:, :, None]
        ranked = rank(scores, visible, forced)
        return first_slots(ranked.indices, good.gather(-1, ranked.indices), self.config.block_count)
