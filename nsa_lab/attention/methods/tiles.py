"""Which tiles of a sample's rows and keys hold pairs that are read: what a block-sparse kernel walks."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Grid:
    """Square tiles over the `count` tokens of a sample; first, last [n] int64: the tokens at their edges."""

    count: int
    size: int
    first: Tensor
    last: Tensor

    @classmethod
    def of(cls, count: int, size: int, device: torch.device) -> "Grid":
        first = torch.arange(0, count, size, device=device)
        return cls(count, size, first, (first + size - 1).clamp(max=count - 1))


@dataclass(frozen=True)
class Tiles:
    """Of each row of tiles, tiles of keys, [H or 1, n, n] bool, whatever comes after a row.

    some: those that may hold a pair that is read; whole: those of which every pair is.
    """

    some: Tensor
    whole: Tensor

    def causal(self) -> "Tiles":
        """Those without what lies after a row; on the diagonal no tile is whole."""
        return Tiles(self.some.tril(), self.whole.tril(-1))


def tiles_of_blocks(table: Tensor, size: int, grid: Grid) -> Tiles:
    """The tiles over the pairs of blocks of `size` tokens that are read, table [H, N, N] bool."""
    first, end = grid.first // size, grid.last // size + 1
    sums = F.pad(table.int().cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32), (1, 0, 1, 0))
    rows = sums[:, end] - sums[:, first]
    read = rows[:, :, end] - rows[:, :, first]
    blocks = end - first
    return Tiles(read > 0, read == blocks[:, None] * blocks)


def listed(wanted: Tensor) -> tuple[Tensor, Tensor]:
    """How many of each row [..., n] bool are wanted, and all places with those first, both int32."""
    order = wanted.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
    return wanted.sum(-1, dtype=torch.int32), order.to(torch.int32)
