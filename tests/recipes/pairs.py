"""A partitioner: blocks of two tokens, whatever block_size says."""

from torch import Tensor

from nsa_lab.partition.base import Context, Partition, Partitioner, partition_from_starts
from nsa_lab.partition.segments import place_in_run


class Pairs(Partitioner):
    causality = "token"
    prefix_consistent = True

    @classmethod
    def longest(cls, config: object) -> int:
        return 2

    def forward(self, context: Context, features: Tensor | None = None, layer: int = 0) -> Partition:
        return partition_from_starts(place_in_run(context.segment) % 2 == 0, context.cu_seqlens, self.causality)
