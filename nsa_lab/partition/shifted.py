"""A control: blocks of one length that begin out of step with whatever the video does."""

from torch import Tensor

from nsa_lab.partition.base import Context, Partition, Partitioner, partition_from_starts
from nsa_lab.partition.segments import place_in_run


class Shifted(Partitioner):
    """`uniform` with every boundary `phase` tokens earlier (half a block by default)."""

    causality = "token"
    prefix_consistent = True

    def forward(self, context: Context, features: Tensor | None = None, layer: int = 0) -> Partition:
        place, size = place_in_run(context.segment), self.config.block_size
        phase = size // 2 if self.config.phase is None else self.config.phase
        starts = (place == 0) | ((place + phase) % size == 0)
        return partition_from_starts(starts, context.cu_seqlens, self.causality)
