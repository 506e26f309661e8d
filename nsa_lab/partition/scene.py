"""Blocks that follow the content: long where the picture stands still, short where it changes."""

from torch import Tensor

from nsa_lab.config.schema import PartitionConfig
from nsa_lab.partition.base import Context, Partition, Partitioner
from nsa_lab.partition.novelty import budget_lengths, max_size, partition_of_lengths, segments_of


class Scene(Partitioner):
    """Whole frames, cut by an online novelty budget (see `novelty.budget_lengths`), `block_size` tokens on average."""

    causality = "frame"
    prefix_consistent = True
    needs_features = True

    @classmethod
    def longest(cls, config: PartitionConfig) -> int:
        return max_size(config)

    def forward(self, context: Context, features: Tensor | None = None, layer: int = 0) -> Partition:
        assert features is not None
        segments = segments_of(context, features, self.config.block_size)
        lengths = [n for segment in segments for n in budget_lengths(segment, self.config)]
        return partition_of_lengths(lengths, context, self.causality)
