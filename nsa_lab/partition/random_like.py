"""A control: the block lengths that `scene` finds in each video, in an order that has nothing to do with the video."""

import random
from collections.abc import Sequence

from nsa_lab.partition.novelty import Segment
from nsa_lab.partition.scene import Scene


class RandomLike(Scene):
    """The same lengths as `scene`, segment by segment, shuffled by `seed` alone: equal counts, equal orders."""

    causality = "video"
    prefix_consistent = False

    def lengths(self, segments: Sequence[Segment]) -> list[int]:
        shuffled = []
        for segment in segments:
            own = super().lengths([segment])
            random.Random(self.config.seed).shuffle(own)
            shuffled += own
        return shuffled
