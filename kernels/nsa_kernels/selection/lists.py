"""Who chose which block: from [queries, G, slots] block numbers to one list of queries per (group, block).

The order inside a list is the order of the queries, whatever order the programs run in, so that every sum over a
list is the same in every run. Membership is a bit per query; a query's place is the number of bits before its own.

`_mark` and `_place`: a program owns BLOCK places of `chosen`, each of one (query, group, slot), whatever block it
names, so that all have the same work. `_before`: a program owns BLOCK lists and runs down their words.

  chosen [C, G, S] int32                  -1 for an empty slot; total = C * G * S
  words [tiles, G, N] int32               bit i for query i of TILE
  before [tiles, G, N] int32              how many queries of earlier words chose the block; tiles, columns: its sizes
  count, begin [G * N], entries [total]   as in `Lists`
  TILES                                   words that `_before` takes at a time
"""

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.runtime import cdiv, launch
from nsa_kernels.tiles import popcount

TILE = 32
"""Queries per membership word."""


@dataclass(frozen=True)
class Lists:
    """Lists of C queries' choices, group by group and block by block, as int32 tensors.

    entries [C * G * S]: chunk query * S + slot; of packs chunk query * 2^pack + a bit for each block. begin, count [G *
    N]: where each list begins and how long it is. item_block [M]: the list each work item belongs to, G * N past the
    last. item_begin, extra_begin [G * N]: the list's first item, and where its later items stand among all that are not
    the first of their list.
    per_item: entries of one item. extras: at most so many items are not the first of their list.
    """

    entries: Tensor
    begin: Tensor
    count: Tensor
    item_begin: Tensor
    extra_begin: Tensor
    item_block: Tensor
    per_item: int
    extras: int


@triton.jit(do_not_specialize=["total", "N"])
def _mark(chosen, words, total, N, G: tl.constexpr, S: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    block = tl.load(chosen + i, mask=i < total, other=-1)
    query = i // (G * S)
    g = (i // S) % G
    bit = (1 << (query % TILE)).to(tl.uint32)
    tl.atomic_or(words + ((query // TILE) * G + g) * N + block, bit, mask=block >= 0, sem="relaxed")


@triton.jit(do_not_specialize=["tiles", "columns"])
def _before(words, before, count, tiles, columns, TILES: tl.constexpr, BLOCK: tl.constexpr):
    """How many queries of earlier words chose each (group, block), and how many chose it in all."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.int32)
    for tile0 in range(0, tiles, TILES):
        tile = tile0 + tl.arange(0, TILES)
        inside = (tile < tiles)[:, None] & (column < columns)[None, :]
        at = tile.to(tl.int64)[:, None] * columns + column[None, :]
        bits = popcount(tl.load(words + at, mask=inside, other=0).to(tl.uint32))
        tl.store(before + at, total[None, :] + tl.cumsum(bits, 0) - bits, mask=inside)
        total += tl.sum(bits, 0)
    tl.store(count + column, total, mask=column < columns)


@triton.jit(do_not_specialize=["total", "N"])
def _place(
    chosen, inner, words, before, begin, entries, total, N,
    G: tl.constexpr, S: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, PACK: tl.constexpr,
):  # fmt: skip
    """PACK: N packs of so many blocks, whose words are `inner`; 0 for N blocks. A query that chose several of a pack
    writes its entry as often."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    block = tl.load(chosen + i, mask=i < total, other=-1)
    taken = block >= 0
    query = i // (G * S)
    g = (i // S) % G
    entry = query * S + i % S
    if PACK:
        block = block // PACK
    at = ((query // TILE) * G + g) * N + block
    if PACK:
        entry = query << PACK
        for j in tl.static_range(PACK):
            own = tl.load(inner + at * PACK + j, mask=taken, other=0).to(tl.uint32)
            entry |= (((own >> (query % TILE).to(tl.uint32)) & 1) << j).to(tl.int64)
    bit = (1 << (query % TILE)).to(tl.uint32)
    word = tl.load(words + at, mask=taken, other=0).to(tl.uint32)
    earlier = popcount(word & (bit - 1))
    place = tl.load(begin + g * N + block, mask=taken, other=0) + tl.load(before + at, mask=taken, other=0) + earlier
    tl.store(entries + place, entry.to(tl.int32), mask=taken & ((word & bit) != 0))


def build_lists(chosen: Tensor, num_blocks: int, per_item: int, words: Tensor | None = None, pack: int = 0) -> Lists:
    """chosen [C, G, S] int32, -1 for an empty slot, no block twice in a (query, group). No host synchronisation.

    words [ceil(C / TILE), G, N] int32: the choices to list where not all of them are, bit i for query i of a TILE.
    pack: N is a number of packs of so many blocks, a list for each.
    """
    queries, groups, slots = chosen.shape
    columns, tiles, total = groups * num_blocks, cdiv(queries, TILE), chosen.numel()
    grid = (cdiv(total, 1024),)
    shape = {"G": groups, "S": slots, "TILE": TILE, "BLOCK": 1024}
    inner = words
    if words is None:
        blocks = num_blocks * max(1, pack)
        inner = torch.zeros((tiles, groups, blocks), dtype=torch.int32, device=chosen.device)
        launch(_mark, grid, chosen, inner, total, blocks, **shape)
        words = functools.reduce(torch.bitwise_or, inner.view(tiles, groups, num_blocks, -1).unbind(3))
    before = torch.empty_like(words)
    count = words.new_empty(columns)
    entries = words.new_empty(total)
    launch(_before, (cdiv(columns, 32),), words, before, count, tiles, columns, TILES=64, BLOCK=32)
    items = (count + (per_item - 1)) // per_item
    firsts = items.clamp(max=1)
    ends = torch.stack([count, items, items - firsts]).cumsum(1, dtype=torch.int32)
    begin, item_begin, extra_begin = ends[0] - count, ends[1] - items, ends[2] - (items - firsts)
    extras = total // per_item
    most = extras + min(columns, total)
    item_block = torch.searchsorted(
        ends[1], torch.arange(most, dtype=torch.int32, device=chosen.device), right=True, out_int32=True
    )
    launch(_place, grid, chosen, inner, words, before, begin, entries, total, num_blocks, PACK=pack, **shape)
    return Lists(entries, begin, count, item_begin, extra_begin, item_block, per_item, extras)
