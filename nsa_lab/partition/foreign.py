"""A control: blocks that follow the content of another video."""

from collections.abc import Sequence
from dataclasses import replace

from nsa_lab.partition.novelty import Segment
from nsa_lab.partition.scene import Scene


class Foreign(Scene):
    """`scene` with the novelty of the next video of the batch, repeated or cut to this one's number of frames.

    The last video takes the first one's; a video alone in its batch takes its own, half its length later.
    """

    control = True
    causality = "video"
    prefix_consistent = False

    def lengths(self, segments: Sequence[Segment]) -> list[int]:
        videos = [segment for segment in segments if segment.is_video]
        donors = iter([*videos[1:], *videos[:1]])
        return super().lengths([_borrow(own, next(donors)) if own.is_video else own for own in segments])


def _borrow(own: Segment, donor: Segment) -> Segment:
    shift = len(own.novelty) // 2 if donor is own else 0
    count = len(donor.novelty)
    return replace(own, novelty=[donor.novelty[(unit + shift) % count] for unit in range(len(own.novelty))])
