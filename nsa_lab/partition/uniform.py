"""Blocks of one length, counted from the start of each segment (VideoNSA, section 2: s tokens per block)."""

import torch

from nsa_lab.partition.base import Context, Partition, partition_from_block_id
from nsa_lab.partition.segments import place_in_run


def uniform(context: Context, block_size: int) -> Partition:
    """Blocks of `block_size` tokens; the last one of a segment may be shorter."""
    starts = place_in_run(context.segment) % block_size == 0
    return partition_from_block_id(torch.cumsum(starts, 0) - 1, context.cu_seqlens, "token")
