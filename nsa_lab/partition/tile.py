"""Space-time tiles whose shape changes from layer to layer (VMoBA's cycling; tiles as in VSA, without padding)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from nsa_lab.errors import Problem, nearest
from nsa_lab.partition.base import Context, Partition, Partitioner, partition_from_block_id
from nsa_lab.partition.segments import place_in_run, place_of_run, run_lengths, run_starts

Shape = tuple[int, int, int]
"""Frames, rows and columns of a tile."""

PREFERENCES: dict[str, Callable[[Shape], tuple]] = {
    "time": lambda shape: (shape[0], _volume(shape), -abs(shape[1] - shape[2])),
    "row": lambda shape: (-shape[0], shape[2], _volume(shape)),
    "cube": lambda shape: (min(shape) / max(shape), _volume(shape)),
}
"""What each word of `tile.cycle` wants the most of."""


@dataclass
class TileShapes:
    """The shapes that layers take in turn, and how many frames a tile may span at most."""

    cycle: str = "time row cube"
    max_frames: int = 8


class Tile(Partitioner):
    """Each layer takes the next shape of `tile.cycle`: many frames (time), few (row) or even sides (cube).

    Rows and columns of a tile divide the frame's exactly; the last tile in time may be shorter. A tile is pooled when
    its last frame is there, which is why `tile.max_frames` bounds it. Text is cut into blocks of `block_size`.
    """

    @dataclass
    class Config(Partitioner.Config):
        """`block_size` is the cap on a tile's tokens."""

        tile: TileShapes = field(default_factory=TileShapes)

    causality = "token"
    prefix_consistent = True
    scope = "layer"

    @classmethod
    def problems(cls, config: Config, design: object) -> Iterator[Problem]:
        yield from super().problems(config, design)
        words, known = config.tile.cycle.split(), ", ".join(PREFERENCES)
        if not words:
            yield Problem("tile.cycle", f"names no shape; write some of {known}")
        for word in words:
            if word not in PREFERENCES:
                yield Problem("tile.cycle", f"unknown shape {word!r}; {nearest(word, PREFERENCES)}known: {known}")
        if config.tile.max_frames < 1:
            yield Problem("tile.max_frames", f"{config.tile.max_frames} is not positive")

    @classmethod
    def group(cls, config: Config, layer: int) -> int:
        return layer % len(config.tile.cycle.split())

    def forward(self, context: Context, features: Tensor | None = None, layer: int = 0) -> Partition:
        words = self.config.tile.cycle.split()
        grids = context.frame_grid[run_starts(context.segment)].tolist()
        block_size, most = self.config.block_size, self.config.tile.max_frames
        shapes = [tile_shape(words[layer % len(words)], *grid, block_size, most) for grid in grids]
        tile = torch.tensor(shapes, device=context.segment.device).reshape(-1, 3)[context.segment]
        columns = context.frame_grid[:, 1]
        # A run of text is one long row.
        row = torch.where(columns > 0, context.cell // columns.clamp(min=1), 0)
        column = context.cell - row * columns
        frame = place_of_run(context.frame, context.segment)
        slab = frame // tile[:, 0]
        block_id = _number(torch.stack([context.segment, slab, row // tile[:, 1], column // tile[:, 2]], 1))
        return partition_from_block_id(
            block_id,
            context.cu_seqlens,
            self.causality,
            block_end=_ends(block_id, context, frame, (slab + 1) * tile[:, 0]),
        )


@cache
def tile_shape(word: str, rows: int, columns: int, block_size: int, max_frames: int) -> Shape:
    """The tile of at most `block_size` tokens that `word` prefers, among those of more than half the best volume."""
    if rows == 0:
        return 1, 1, block_size
    fitting = [
        (min(max_frames, block_size // (height * width)), height, width)
        for height in _divisors(rows)
        for width in _divisors(columns)
        if height * width <= block_size
    ]
    shapes = [(frames, height, width) for most, height, width in fitting for frames in range(1, most + 1)]
    enough = max(map(_volume, shapes)) / 2
    return max((shape for shape in shapes if _volume(shape) > enough), key=PREFERENCES[word])


def _ends(block_id: Tensor, context: Context, frame: Tensor, full: Tensor) -> Tensor:
    """[N] each tile's last key; its segment's where the segment has less than `full` [T] frames and cuts it short.

    Were a short tile seen earlier, a video and its prefix would differ in more than their last token.
    """
    place = torch.arange(len(frame), device=frame.device)
    last = place - place_in_run(context.segment) + run_lengths(context.segment) - 1
    seen = torch.where(full > frame[last] + 1, last, place)
    count = int(block_id.max()) + 1 if len(block_id) else 0
    return place.new_full((count,), -1).scatter_reduce(0, block_id, seen, "amax")


def _number(keys: Tensor) -> Tensor:
    """[T] int64: rows of keys [T, n] numbered from 0 in lexicographic order, equal rows alike."""
    flat = keys[:, 0]
    for column in keys.unbind(1)[1:]:
        flat = flat * (column.amax() + 1 if len(column) else 1) + column
    return flat.unique(return_inverse=True)[1]


def _volume(shape: Shape) -> int:
    return shape[0] * shape[1] * shape[2]


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
