"""Blocks that respect frames: whole frames merged up to the cap, or one long frame split evenly.

The released VideoNSA code cuts every 64 sequence positions, so that blocks drift through frames of 54 or 60 tokens.
"""

from torch import Tensor

from nsa_lab.partition.base import Context, Partition, Partitioner, partition_from_starts
from nsa_lab.partition.segments import part_starts, place_of_run, run_lengths


class Frame(Partitioner):
    """As many whole frames per block as fit into `block_size` tokens; a longer frame is cut into equal parts."""

    causality = "token"
    prefix_consistent = True

    def forward(self, context: Context, features: Tensor | None = None, layer: int = 0) -> Partition:
        block_size = self.config.block_size
        length = run_lengths(context.frame)
        frames_per_block = (block_size // length).clamp(min=1)
        opens = place_of_run(context.frame, context.segment) % frames_per_block == 0
        starts = part_starts(context.frame, block_size) & ((length > block_size) | opens)
        return partition_from_starts(starts, context.cu_seqlens, self.causality)
