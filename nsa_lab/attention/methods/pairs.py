"""What a training-free method chose for one sample, and what no row may see whatever was chosen."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nsa_lab.attention.methods.tiles import Grid, Tiles, tiles_of_blocks

Seen = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(heads, rows, keys), int64 places in one sample that broadcast, to bool; keys after a row are left out elsewhere."""


@dataclass(frozen=True)
class Choice:
    """seen: what a row reads, and tiles: which tiles of a grid hold it. scored: keys scored to find it out, the mean
    over rows and heads. columns [H, T] bool: keys that all rows of a head read besides.
    """

    seen: Seen
    tiles: Callable[[Grid], Tiles]
    scored: float = 0.0
    columns: Tensor | None = None

    def reads(self, heads: Tensor, rows: Tensor, keys: Tensor) -> Tensor:
        """Whether a row reads a key, its columns among them: bool, as `seen`."""
        seen = self.seen(heads, rows, keys)
        return seen if self.columns is None else seen | self.columns[heads, keys]


class Allowed:
    """The keys at or before a row; of a text row [T] bool the last `window` of them, where one is given."""

    def __init__(self, text: Tensor, window: int | None):
        self.text, self.window = text, window

    @property
    def count(self) -> int:
        return len(self.text)

    @property
    def device(self) -> torch.device:
        return self.text.device

    def __call__(self, rows: Tensor, keys: Tensor) -> Tensor:
        past = keys <= rows
        return past if self.window is None else past & ~(self.text[rows] & (keys <= rows - self.window))

    def cut(self, tiles: Tiles, grid: Grid) -> Tiles:
        """Causal tiles, of which none with a narrowed row is whole."""
        if self.window is None:
            return tiles
        before = F.pad(self.text.cumsum(0), (1, 0))
        narrowed = before[grid.last + 1] > before[grid.first]
        return Tiles(tiles.some, tiles.whole & ~narrowed[:, None])


def choice_of_blocks(table: Tensor, size: int, scored: float) -> Choice:
    """What `table` [H, N, N] bool says of blocks of `size` tokens, counted from the sample's first."""
    return Choice(
        lambda heads, rows, keys: table[heads, rows // size, keys // size],
        lambda grid: tiles_of_blocks(table, size, grid),
        scored,
    )
