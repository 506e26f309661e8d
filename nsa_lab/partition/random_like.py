"""A control: the block lengths that `scene` finds in each video, in an order that has nothing to do with the video."""

import random

from torch import Tensor

from nsa_lab.config.schema import PartitionConfig
from nsa_lab.partition.base import Context, Partition, Partitioner
from nsa_lab.partition.novelty import budget_lengths, max_size, partition_of_lengths, segments_of


class RandomLike(Partitioner):
    """The same lengths as `scene`, segment by segment, shuffled by `seed` alone: equal counts, equal orders."""

    causality = "video"
    prefix_consistent = False
    needs_features = True

    @classmethod
    def longest(cls, config: PartitionConfig) -> int:
        return max_size(config)

    def forward(self, context: Context, features: Tensor | None = None, layer: int = 0) -> Partition:
        assert features is not None
        shuffled = []
        for segment in segments_of(context, features, self.config.block_size):
            lengths = budget_lengths(segment, self.config)
            random.Random(self.config.seed).shuffle(lengths)
            shuffled += lengths
        return partition_of_lengths(shuffled, context, self.causality)
