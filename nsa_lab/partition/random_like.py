"""A control: the block lengths that `scene` finds in each video, in an order that has nothing to do with the video."""

import random
from collections.abc import Sequence

from nsa_lab.partition.novelty import Segment
from nsa_lab.partition.scene import Scene


class RandomLike(Scene):
    """The same lengths as `scene`, segment by segment, in an order drawn anew for every sequence of lengths.

    The order follows from `seed` and from the lengths: the same video is cut the same way every time, and two videos
    have orders of their own, so that no fixed uneven grid is there to be learnt.
    """

    causality = "video"
    prefix_consistent = False

    def lengths(self, segments: Sequence[Segment]) -> list[int]:
        shuffled = []
        for segment in segments:
            own = super().lengths([segment])
            random.Random(f"{self.config.seed} {own}").shuffle(own)
            shuffled += own
        return shuffled
