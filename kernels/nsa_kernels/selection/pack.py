"""Blocks too short for a tile of keys: the walk over lists meets several at once where each needs no slot."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from nsa_kernels.blocks import Blocks
from nsa_kernels.runtime import padded

LEAST_KEYS = 16
MOST_PACKED = 8
"""A list's entry is a query and a bit for each block of the pack, in an int32."""


def pack_size(longest: int) -> int:
    """So many neighbouring blocks of at most `longest` tokens fill LEAST_KEYS, the least that tl.dot multiplies."""
    return max(1, min(MOST_PACKED, LEAST_KEYS // padded(longest, 1)))


def pack_blocks(blocks: Blocks, pack: int) -> Blocks:
    """Blocks that are `pack` neighbouring ones of `blocks` each, the last perhaps fewer; some may be of two samples."""
    if pack < 2:
        return blocks
    return replace(
        blocks,
        offsets=torch.cat([blocks.offsets[:-1:pack], blocks.offsets[-1:]]),
        start=_packs(blocks.start, pack, 2**31 - 1).amin(1),
        end=_packs(blocks.end, pack, -1).amax(1),
        sizes=[pack * blocks.longest, *blocks.sizes[1:]],
    )


def _packs(x: Tensor, pack: int, value: int) -> Tensor:
    return pad(x, (0, -len(x) % pack), value=value).view(-1, pack)
