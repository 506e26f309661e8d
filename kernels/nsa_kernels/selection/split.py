"""Blocks too large for a program's shared memory are read in parts; a part takes a slot of its own."""

from dataclasses import replace

import torch
from torch import Tensor

from nsa_kernels.blocks import Blocks
from nsa_kernels.runtime import INTERPRET, cdiv, padded


def most_keys(head_dim: int, dtype: torch.dtype) -> int:
    """Keys whose keys and values fit beside a tile of queries: 32 KiB each, 64 KiB in float32."""
    if INTERPRET:
        return 32
    return (2**16 if dtype == torch.float32 else 2**15) // (padded(head_dim) * dtype.itemsize)


def split_blocks(blocks: Blocks, chosen: Tensor, limit: int) -> tuple[Blocks, Tensor]:
    """Blocks of at most `limit` tokens, and the choice [Tq, G, S * parts] of all parts of the chosen blocks."""
    parts = cdiv(blocks.longest, limit)
    if parts < 2:
        return blocks, chosen
    part = torch.arange(parts, dtype=torch.int32, device=chosen.device)
    cuts = torch.minimum(blocks.offsets[:-1, None] + part * limit, blocks.offsets[1:, None])
    offsets = torch.cat([cuts.flatten(), blocks.offsets[-1:]])
    pieces = chosen[..., None] * parts + part
    there = (chosen[..., None] >= 0) & (offsets.diff() > 0)[pieces.clamp(min=0)]
    smaller = replace(
        blocks,
        offsets=offsets,
        start=blocks.start.repeat_interleave(parts),
        end=blocks.end.repeat_interleave(parts),
        sizes=[limit, *blocks.sizes[1:]],
    )
    return smaller, torch.where(there, pieces, -1).flatten(2).contiguous()
