"""Cut the work into pieces whose memory is bounded: query rows against the few keys they may see.

Long samples are cut by query rows; short samples are padded side by side, so that a packed batch costs a few
large calls and not one small call per sample.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nsa_lab.attention.query_tiles import QueryTiles
from nsa_lab.partition import Context

PIECE_BYTES = 128 * 2**20
MIN_ROWS = 16
CAUSAL_ROWS = 256
"""Rows of a piece that is cut for causality's sake: a quarter of the keys is enough of a saving, small calls cost."""
WASTE = 1.25
"""How much larger pieces side by side may be for their padding."""

KeyRange = Callable[[int, int, int], tuple[int, int]]
"""(sample, first place, last place) to the keys or blocks that queries between two places of the context may see."""


@dataclass(frozen=True)
class Piece:
    """Queries row_begin..row_end of one sample against keys (or blocks) key_begin..key_end of it."""

    row_begin: int
    row_end: int
    key_begin: int
    key_end: int

    @property
    def rows(self) -> int:
        return self.row_end - self.row_begin

    @property
    def keys(self) -> int:
        return self.key_end - self.key_begin


@dataclass(frozen=True)
class Group:
    """Pieces side by side: rows [U, C] and keys [U, K] int64, -1 where a piece is shorter than the longest.

    alone: the piece, where there is one.
    """

    rows: Tensor
    keys: Tensor
    alone: Piece | None = None

    def take_rows(self, x: Tensor) -> Tensor:
        """[Tq, ...] to [U, C, ...]; padding repeats row 0."""
        if self.alone:
            return x[None, self.alone.row_begin : self.alone.row_end]
        return x[self.rows.clamp(min=0)]

    def take_keys(self, x: Tensor) -> Tensor:
        """[T, ...] to [U, K, ...]; padding repeats key 0."""
        if self.alone:
            return x[None, self.alone.key_begin : self.alone.key_end]
        return x[self.keys.clamp(min=0)]

    def flat_rows(self, x: Tensor) -> Tensor:
        """[U, C, ...] to the real rows of it, in packed order."""
        return x[0] if self.alone else x[self.rows >= 0]

    def flat_keys(self, x: Tensor) -> Tensor:
        """[U, K, ...] to the real keys of it, in packed order."""
        return x[0] if self.alone else x[self.keys >= 0]


def rows_that_fit(row_bytes: int) -> int:
    """How many rows of `row_bytes` each a piece may have."""
    return max(MIN_ROWS, PIECE_BYTES // max(1, row_bytes))


def cut_rows(context: Context, key_range: KeyRange, max_rows: int, tiles: QueryTiles | None = None) -> list[Piece]:
    """Pieces of at most `max_rows` queries, sample by sample, each with just the keys its queries may see.

    No piece ends inside a tile of `tiles`; one that is longer than `max_rows` is a piece of its own.
    """
    pieces = []
    first_of_tile = None if tiles is None else tiles.first.tolist()
    for sample, (first, last, _, _) in enumerate(context.spans):
        row = first
        while row < last:
            end = min(last, row + max_rows)
            if tiles is not None and first_of_tile is not None and end < last:
                end = first_of_tile[end] if first_of_tile[end] > row else int(tiles.last[row]) + 1
            place, last_place = context.host_query_index[row], context.host_query_index[end - 1]
            pieces.append(Piece(row, end, *key_range(sample, place, last_place)))
            row = end
    return pieces


def group_pieces(pieces: list[Piece], row_bytes: Callable[[int], int], device: torch.device) -> list[Group]:
    """Put neighbouring pieces side by side while their padded memory stays within PIECE_BYTES and WASTE."""
    groups: list[list[Piece]] = []
    for piece in pieces:
        if groups and _fits([*groups[-1], piece], row_bytes):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return [_pad(group, device) for group in groups]


def _fits(pieces: list[Piece], row_bytes: Callable[[int], int]) -> bool:
    rows, keys = max(p.rows for p in pieces), max(p.keys for p in pieces)
    wasted = len(pieces) * rows * keys > WASTE * sum(p.rows * p.keys for p in pieces)
    return not wasted and len(pieces) * rows * row_bytes(keys) <= PIECE_BYTES


def _pad(pieces: list[Piece], device: torch.device) -> Group:
    return Group(
        rows=_ranges([(p.row_begin, p.row_end) for p in pieces], device),
        keys=_ranges([(p.key_begin, p.key_end) for p in pieces], device),
        alone=pieces[0] if len(pieces) == 1 else None,
    )


def _ranges(spans: list[tuple[int, int]], device: torch.device) -> Tensor:
    begin, end = torch.tensor(spans, device=device)[:, :, None].unbind(1)
    place = begin + torch.arange(max(b - a for a, b in spans), device=device)
    return place.masked_fill(place >= end, -1)
