"""Blocks of one length, counted from the start of each segment (VideoNSA, section 2: s tokens per block)."""

from torch import Tensor

from nsa_lab.partition.base import Context, Partition, Partitioner, partition_from_starts
from nsa_lab.partition.segments import place_in_run


class Uniform(Partitioner):
    """Blocks of `block_size` tokens; the last one of a segment may be shorter."""

    causality = "token"
    prefix_consistent = True

    def forward(self, context: Context, features: Tensor | None = None, layer: int = 0) -> Partition:
        starts = place_in_run(context.segment) % self.config.block_size == 0
        return partition_from_starts(starts, context.cu_seqlens, self.causality)
