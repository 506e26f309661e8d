"""A control: the block lengths that `scene` finds in each video, in an order that has nothing to do with the video."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nsa_lab.errors import Problem
from nsa_lab.partition.novelty import Segment
from nsa_lab.partition.scene import Scene


class RandomLike(Scene):
    """The same lengths as `scene`, segment by segment, in an order drawn anew for every sequence of lengths.

    The order follows from `seed` and from the lengths: the same video is cut the same way every time, and two videos
    have orders of their own, so that no fixed uneven grid is there to be learnt.
    """

    @dataclass
    class Config(Scene.Config):
        """As scene's; `seed` draws the orders."""

        seed: int = 0

    control = True
    causality = "video"
    prefix_consistent = False

    @classmethod
    def problems(cls, config: Config, design: object) -> Iterator[Problem]:
        yield from super().problems(config, design)
        if config.seed < 0:
            yield Problem("seed", f"{config.seed} is negative; use 0 or more")

    def lengths(self, segments: Sequence[Segment]) -> list[int]:
        shuffled = []
        for segment in segments:
            own = super().lengths([segment])
            random.Random(f"{self.config.seed} {own}").shuffle(own)
            shuffled += own
        return shuffled
