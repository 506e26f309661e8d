"""Blocks that respect frames: whole frames merged up to the cap, or one long frame split evenly.

The released VideoNSA code cuts every 64 sequence positions, so that blocks drift through frames of 54 or 60 tokens.
"""

import torch

from nsa_lab.partition.base import Context, Partition, partition_from_block_id
from nsa_lab.partition.segments import place_in_run, run_lengths, run_starts


def frame(context: Context, block_size: int) -> Partition:
    """As many whole frames per block as fit into `block_size` tokens; a longer frame is cut into equal parts."""
    place, length = place_in_run(context.frame), run_lengths(context.frame)
    first_frame = context.frame[run_starts(context.segment)]
    frame_in_segment = context.frame - first_frame[context.segment]
    frames_per_block = (block_size // length).clamp(min=1)
    parts = -(-length // block_size)
    part = place * parts // length
    new_part = place_in_run(part + context.frame * (parts.max() + 1 if len(parts) else 1)) == 0
    starts = new_part & ((parts > 1) | (frame_in_segment % frames_per_block == 0))
    return partition_from_block_id(torch.cumsum(starts, 0) - 1, context.cu_seqlens, "token")
