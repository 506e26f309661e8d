"""MInference (arXiv 2407.02490), its vertical-slash heads: columns and diagonals, so many for each head."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nsa_lab.attention.dims import HeadDims
from nsa_lab.attention.methods.last_rows import answer_notice, best, last_rows_mass, scored_by_last_rows
from nsa_lab.attention.methods.pairs import Choice, Seen
from nsa_lab.attention.methods.tiles import Grid, Tiles
from nsa_lab.attention.methods.training_free import TrainingFree
from nsa_lab.errors import NsaLabError, Problem

PATTERN = "vertical_and_slash"


@dataclass
class VerticalSlash:
    """table: a file of columns and diagonals by layer and head; without one every head reads `vertical` and `slash`.

    last: so many last rows are evidence. first, near: the first columns and the nearest diagonals, which count most.
    block_size: so many rows read each other's diagonals.
    """

    table: str | None = None
    vertical: int = 1000
    slash: int = 6096
    last: int = 64
    first: int = 30
    near: int = 100
    block_size: int = 64


class MInference(TrainingFree):
    """A head reads the columns and diagonals that its last rows attend to most, diagonals widened to blocks of rows.

    Reproduced: the evidence, the choice and the widening (github.com/microsoft/MInference, MIT), exactly as a set of
    keys; its kernel rounds neighbouring diagonals up to whole 64, which reads up to 63 keys more at their end. `table`
    is a file in that library's form (`minference/configs/*.json`: for each layer an object of heads, each [pattern,
    columns, diagonals, score]), such as the one for Qwen2.5-7B-Instruct, which VideoNSA used as it is; a run is known
    by the file's path, not by what it holds. Not reproduced: the search that makes a table, the patterns `block_sparse`
    and `stream_llm`, of which that table has none, MMInference, and raising what is less than 30 columns or 50
    diagonals. Every row's keys depend on the sample's end.
    """

    reads = "the columns and diagonals that its sample's last rows attend to most"

    @dataclass
    class Config:
        minference: VerticalSlash = field(default_factory=VerticalSlash)

    def __init__(self, config: Any, design: Any, dims: HeadDims, layer: int):
        """Raises NsaLabError where the table has no line for this layer, or none for one of its heads."""
        super().__init__(config, design, dims, layer)
        own, heads = config.minference, range(dims.num_heads)
        table = None if own.table is None else read_table(own.table)
        if table is not None and (layer >= len(table) or any(head not in table[layer] for head in heads)):
            raise NsaLabError(
                f"{own.table} has no entry for every one of the {dims.num_heads} heads of layer {layer}; take a table"
                " of this model, or leave attention.minference.table null"
            )
        every = [(own.vertical, own.slash) if table is None else table[layer][head] for head in heads]
        self.columns, self.diagonals = zip(*every, strict=True)

    @classmethod
    def problems(cls, config: Any, design: Any) -> Iterator[Problem]:
        yield from super().problems(config, design)
        own = config.minference
        for name in ("slash", "last", "near", "block_size"):
            if getattr(own, name) < 1:
                yield Problem(f"minference.{name}", f"{getattr(own, name)} is not positive")
        for name in ("vertical", "first"):
            if getattr(own, name) < 0:
                yield Problem(f"minference.{name}", f"{getattr(own, name)} is negative; use 0 or more")
        if own.table is not None:
            try:
                read_table(own.table)
            except NsaLabError as error:
                yield Problem("minference.table", str(error))

    @classmethod
    def notices(cls, config: Any, clip: str, tokens: int) -> Iterator[str]:
        own = config.minference
        yield from answer_notice(own.last, clip)
        if own.table is None and tokens <= own.slash:
            yield (
                f"attention.minference.slash={own.slash} holds every diagonal of a {clip} clip ({tokens} tokens): it is"
                " read densely"
            )

    def choose(self, q: Tensor, k: Tensor) -> Choice:
        own, count = self.config.minference, len(q)
        vertical, slash = last_rows_mass(q, k, own.last, self.scale)
        vertical[:, : own.first] = slash[:, : own.near] = torch.inf
        columns, diagonals = (
            best(mass, torch.tensor(number, device=q.device))
            for mass, number in ((vertical, self.columns), (slash, self.diagonals))
        )
        seen, tiles = widened(diagonals, own.block_size)
        return Choice(seen, tiles, scored_by_last_rows(count, own.last), columns)


def widened(diagonals: Tensor, size: int) -> tuple[Seen, Callable[[Grid], Tiles]]:
    """What blocks of `size` rows read that share their diagonals [H, T] bool, by distance; and the tiles of a grid."""
    count = diagonals.shape[1]
    before = F.pad(diagonals.cumsum(1, dtype=torch.int32), (1, 0))  # of each distance, how many diagonals are nearer
    begin = torch.arange(-size, count, device=diagonals.device)
    low, high = (distance.clamp(0, count) for distance in (begin, begin + size))
    read = before[:, high] > before[:, low]  # by distance from the block's first row, and `size`
    reads = F.pad(read.cumsum(1, dtype=torch.int32), (1, 0))

    def seen(heads: Tensor, rows: Tensor, keys: Tensor) -> Tensor:
        return read[heads, (rows // size * size - keys + size).clamp(min=0)]

    def tiles(grid: Grid) -> Tiles:
        nearest, farthest = (edge // size * size + size for edge in (grid.first, grid.last))
        low = (nearest[:, None] - grid.last).clamp(min=0)
        end = (farthest[:, None] - grid.first + 1).clamp(min=0)
        number = reads[:, end] - reads[:, low]
        return Tiles(number > 0, number == end - low)

    return seen, tiles


def read_table(path: str) -> list[dict[int, tuple[int, int]]]:
    """Columns and diagonals by layer and head, of a file in MInference's form. Raises NsaLabError where it is none."""
    try:
        layers = json.loads(Path(path).read_text())
        table = [{int(head): tuple(entry) for head, entry in layer.items()} for layer in layers]
    except OSError as error:
        raise NsaLabError(f"{path} cannot be read ({error.strerror}); name a table, or leave it null") from error
    except (ValueError, AttributeError, TypeError) as error:
        raise NsaLabError(f"{path} is no list of layers with an object of heads each ({error})") from error
    return [{head: _sizes(path, layer, head, entry) for head, entry in own.items()} for layer, own in enumerate(table)]


def _sizes(path: str, layer: int, head: int, entry: tuple[Any, ...]) -> tuple[int, int]:
    match entry:
        case (pattern, int(columns), int(diagonals), *_) if pattern == PATTERN and columns >= 0 and diagonals > 0:
            return columns, diagonals
    raise NsaLabError(
        f"{path}: layer {layer}, head {head} is {list(entry)}; only [{PATTERN}, columns, diagonals, ...] with at least"
        " one diagonal is computed"
    )
