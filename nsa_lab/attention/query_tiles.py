"""Query tiles: neighbouring queries of one frame that share one choice of blocks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nsa_lab.partition import Context
from nsa_lab.partition.segments import place_in_run


@dataclass(frozen=True)
class QueryTiles:
    """first, last: [Tq] int64, the first and the last query of each query's tile."""

    first: Tensor
    last: Tensor


def query_tiles(context: Context, size: int) -> QueryTiles:
    """Tiles of `size` video queries, counted from the first token of each frame; its last tile may be smaller."""
    cache = vars(context).setdefault("query_tiles", {})
    if size not in cache:
        cache[size] = _tiles(context, size)
    return cache[size]


def _tiles(context: Context, size: int) -> QueryTiles:
    query = torch.arange(len(context.query_index), device=context.query_index.device)
    first = query - place_in_run(context.frame[context.query_index]) % size
    last = torch.searchsorted(first, first, right=True) - 1
    return QueryTiles(first, last)
