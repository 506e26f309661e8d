"""A control: blocks that follow the content of another video."""

from dataclasses import replace

from torch import Tensor

from nsa_lab.config.schema import PartitionConfig
from nsa_lab.partition.base import Context, Partition, Partitioner
from nsa_lab.partition.novelty import Segment, budget_lengths, max_size, partition_of_lengths, segments_of


class Foreign(Partitioner):
    """`scene` with the novelty of the next video of the batch, repeated or cut to this one's number of frames.

    The last video takes the first one's; a video alone in its batch takes its own, half its length later.
    """

    causality = "video"
    prefix_consistent = False
    needs_features = True

    @classmethod
    def longest(cls, config: PartitionConfig) -> int:
        return max_size(config)

    def forward(self, context: Context, features: Tensor | None = None, layer: int = 0) -> Partition:
        assert features is not None
        segments = segments_of(context, features, self.config.block_size)
        videos = [segment for segment in segments if segment.is_video]
        donors = iter([*videos[1:], *videos[:1]])
        taken = [_borrow(own, next(donors)) if own.is_video else own for own in segments]
        lengths = [n for segment in taken for n in budget_lengths(segment, self.config)]
        return partition_of_lengths(lengths, context, self.causality)


def _borrow(own: Segment, donor: Segment) -> Segment:
    shift = len(own.novelty) // 2 if donor is own else 0
    count = len(donor.novelty)
    return replace(own, novelty=[donor.novelty[(unit + shift) % count] for unit in range(len(own.novelty))])
