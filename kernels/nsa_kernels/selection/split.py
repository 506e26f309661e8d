"""Blocks too large for a program's shared memory are read in parts; a part takes a slot of its own."""

from dataclasses import replace

import torch
from torch import Tensor

from nsa_kernels.blocks import Blocks
from nsa_kernels.runtime import cdiv

ROWS = 4096
"""Queries whose choice is rewritten at a time."""


def split_blocks(blocks: Blocks, chosen: Tensor, limit: int) -> tuple[Blocks, Tensor]:
    """Blocks of at most `limit` tokens, and the choice [Tq, G, S * parts] of all parts of the chosen blocks."""
    parts = cdiv(blocks.longest, limit)
    if parts < 2:
        return blocks, chosen
    part = torch.arange(parts, dtype=torch.int32, device=chosen.device)
    cuts = torch.minimum(blocks.offsets[:-1, None] + part * limit, blocks.offsets[1:, None])
    offsets = torch.cat([cuts.flatten(), blocks.offsets[-1:]])
    filled = offsets.diff() > 0
    split = chosen.new_empty((*chosen.shape[:2], chosen.shape[2] * parts))
    for begin in range(0, len(chosen), ROWS):
        some = chosen[begin : begin + ROWS, :, :, None]
        pieces = some * parts + part
        there = (some >= 0) & filled[pieces.clamp(min=0)]
        split[begin : begin + ROWS] = torch.where(there, pieces, -1).flatten(2)
    smaller = replace(
        blocks,
        offsets=offsets,
        start=blocks.start.repeat_interleave(parts),
        end=blocks.end.repeat_interleave(parts),
        sizes=[limit, *blocks.sizes[1:]],
    )
    return smaller, split
