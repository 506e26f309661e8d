"""Selection attention, forward: every key block gathers the queries that chose it, then each query joins its blocks.

That is the walk over lists; tiles of queries that share most of their choice go over unions instead
(`over_unions.py`), and where many blocks are chosen each query gathers its keys (`gathered.py`).

`_visit`: a program owns one work item, at most PER_ITEM entries of a block's list, for which it loads the block
once. A row is a (query, head) pair, so a group of 7 heads wastes nothing. A tile of rows meets the block once, so
its softmax is whole: the program writes a normalised partial output with its log-sum-exp into the query's slot, and
keeps nothing. Rows are read and written as left and right halves: products half as wide need fewer registers, and
with too few of those left the assembler lets every wgmma of the backward wait for the one before. `_join`: a program
owns one (query, group) and sums its slots.

Beside the names of `tiles.py`:
  partial [G, queries, S, R, D], partial_lse [G, queries, S, R] float32     the slots
  chosen [Tq, G, S] int32                 S slots of a choice, -1 for an empty one
  entries to item_block                   the tensors of `Lists` (`lists.py`); an entry is query * S + slot
  lse [Tq, H]                             queries first, as a (query, group) is joined whole
  over_union [tiles, G] int32             not 0 where _attend wrote the tile of QUERIES queries, if UNIONS
  query_begin, queries                    this round's queries; those in entries and slots count from its first
  STEP                                    slots that `_join` loads together
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.blocks import Blocks
from nsa_kernels.runtime import INTERPRET, LOG2E, Tile, empty, launch, padded, precision
from nsa_kernels.selection.gathered import attend_gathered
from nsa_kernels.selection.lists import build_lists
from nsa_kernels.selection.over_unions import attend_unions, forward_tile
from nsa_kernels.selection.split import split_blocks
from nsa_kernels.selection.unions import build_unions, waste_for
from nsa_kernels.selection.walk import (
    block_keys,
    dot_halves,
    entries_to_mask,
    half,
    list_part,
    load_halves,
    near_halves,
    pairs_of_tile,
    seen_keys,
    store_products,
)
from nsa_kernels.tiles import exp2
from nsa_kernels.workspace import FORWARD_KEYS, Shape, gathers, keys_held, selection_chunk

JOIN_STEP = 8
"""Slots whose loads are in flight together when a query joins its partial outputs."""


@triton.jit(do_not_specialize=["query_begin", "queries", "N"])
def _visit(
    q, k, v, partial, partial_lse, entries, list_begin, list_count, item_begin, item_block,
    offsets, order, start, end, position, query_at, query_begin, queries, N, scale2,
    H: tl.constexpr, G: tl.constexpr, S: tl.constexpr, D: tl.constexpr, HD: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PER_ITEM: tl.constexpr, PERMUTED: tl.constexpr, IDENTITY: tl.constexpr,
    PREC: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    R: tl.constexpr = H // G
    PAIRS: tl.constexpr = BM // R
    column = tl.load(item_block + tl.program_id(0))
    if column >= G * N:
        return
    g = column // N
    block = column % N
    begin, stop, entry_at = list_part(entries, list_begin, list_count, item_begin, column, PER_ITEM)
    place, length, n, key = block_keys(offsets, order, block, BN, PERMUTED)
    k0, k1 = load_halves(k + g * D, key, n < length, G * D, D, HD)
    v0, v1 = load_halves(v + g * D, key, n < length, G * D, D, HD)
    masked = entries_to_mask(
        query_at, start, end, position, entry_at, block, query_begin, stop, length == BN, S, IDENTITY
    )

    pair_in_tile, head, whole = pairs_of_tile(BM, R)
    q += query_begin.to(tl.int64) * H * D + g * R * D
    partial += g.to(tl.int64) * queries * S * R * D
    partial_lse += g.to(tl.int64) * queries * S * R
    for pair0 in tl.range(begin, stop, PAIRS, num_stages=STAGES):
        pair = pair0 + pair_in_tile
        real = whole & (pair < stop)
        entry = tl.load(entry_at + tl.minimum(pair, stop - 1))
        query = entry // S
        q0, q1 = near_halves(q, query * H + head, D, HD)
        s = dot_halves(q0, q1, k0, k1, PREC)
        if pair0 < masked:
            pos = query_begin + query
            if not IDENTITY:
                pos = tl.load(position + pos)
            s = tl.where(seen_keys(key, n, place, length, pos, PERMUTED), s, float("-inf"))
        m = tl.max(s, 1) * scale2
        m = tl.where(m == float("-inf"), 0.0, m)
        p = exp2(s * scale2 - m[:, None])
        l = tl.sum(p, 1)
        p = (p * (1.0 / tl.where(l == 0, 1.0, l))[:, None]).to(v0.dtype)
        slot = entry * R + head
        tl.store(partial_lse + slot, m + tl.log2(l), mask=real)
        store_products(partial, p, v0, v1, slot, real, D, HD, PREC)


@triton.jit(do_not_specialize=["query_begin", "queries"])
def _join(
    partial, partial_lse, chosen, out, lse, over_union, query_begin, queries,
    H: tl.constexpr, G: tl.constexpr, S: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, RP: tl.constexpr,
    SP: tl.constexpr, STEP: tl.constexpr, UNIONS: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """One (query, group): softmax over its slots' log-sum-exps, and the weighted sum of their partial outputs."""
    R: tl.constexpr = H // G
    local = tl.program_id(0).to(tl.int64)
    g = tl.program_id(1)
    query = query_begin + local
    r = tl.arange(0, RP)
    d = tl.arange(0, DP)
    base = (g.to(tl.int64) * queries + local) * S
    slots = tl.arange(0, SP)
    taken = tl.load(chosen + (query * G + g) * S + slots, mask=slots < S, other=-1) >= 0
    if UNIONS:
        blocks = tl.load(over_union + local // QUERIES * G + g)  # while the load above is on its way
        if blocks != 0:
            return
    there = taken[:, None] & (r < R)[None, :]
    logs = tl.load(partial_lse + (base + slots)[:, None] * R + r[None, :], mask=there, other=float("-inf"))
    m = tl.max(logs, 0)
    m = tl.where(m == float("-inf"), 0.0, m)
    total = tl.sum(exp2(logs - m[None, :]), 0)
    nothing = total == 0
    joint = tl.where(nothing, float("inf"), m + tl.log2(tl.where(nothing, 1.0, total)))
    acc = tl.zeros([RP, DP], tl.float32)
    inside = (r < R)[:, None] & (d < D)[None, :]
    for s0 in range(0, S, STEP):
        for i in tl.static_range(STEP):
            s = s0 + i
            present = (tl.load(chosen + (query * G + g) * S + s + r * 0) >= 0) & (r < R)
            row = (base + s) * R + r
            w = exp2(tl.load(partial_lse + row, mask=present, other=float("-inf")) - joint)
            x = tl.load(partial + row[:, None] * D + d[None, :], mask=present[:, None] & inside, other=0.0)
            acc += x.to(tl.float32) * w[:, None]
    at = query * H + g * R + r
    tl.store(lse + at, joint, mask=r < R)
    tl.store(out + at[:, None] * D + d[None, :], acc.to(out.dtype.element_ty), mask=inside)


def shape_of(q: Tensor, k: Tensor, chosen: Tensor, blocks: Blocks, gathered: bool | None = None) -> Shape:
    """gathered: as given, otherwise as `gathers` says."""
    rows, heads, dim = q.shape
    slots = chosen.shape[2]
    return Shape(
        rows, len(k), blocks.num_blocks, heads, k.shape[1], dim, slots, blocks.longest, q.element_size(),
        gathers(slots, blocks.longest) if gathered is None else gathered,
    )  # fmt: skip


def per_item(ratio: int) -> int:
    """Pairs that one program walks over before another takes the rest of a long list: 32 tiles of 64 rows."""
    return 6 if INTERPRET else 32 * max(1, 64 // ratio)


def selection_forward(
    q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, blocks: Blocks, scale: float, most_waste: float | None = None,
    gathered: bool | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Output [Tq, H, D] and base-2 log-sum-exp [Tq, H] float32, +inf where nothing is visible.

    chosen [Tq, G, S] int32: the blocks of each (query, group), -1 for an empty slot. most_waste: see `waste_for`.
    gathered: see `shape_of`.
    """
    shape = shape_of(q, k, chosen, blocks, gathered)
    if shape.gathered:
        return attend_gathered(q, k, v, chosen, blocks, scale)
    rows, heads, dim = q.shape
    chunk = selection_chunk(shape)
    blocks, chosen = split_blocks(blocks, chosen, keys_held(dim, q.element_size(), FORWARD_KEYS))
    groups, slots = k.shape[1], chosen.shape[2]
    out, lse = empty(tuple(q.shape), q), q.new_empty((rows, heads), dtype=torch.float32)
    if not rows:
        return out, lse
    ratio = heads // groups
    keys = padded(blocks.longest)
    tile = visit_tile(dim, keys, q.dtype)
    height = max(tile.rows, padded(ratio))
    union_tile = forward_tile(dim, keys, ratio, q.dtype)
    waste = waste_for(union_tile, q.dtype, most_waste)
    partial = empty((groups * chunk * slots * ratio, dim), q)
    partial_lse = empty((groups * chunk * slots * ratio,), q, torch.float32)
    for begin in range(0, rows, chunk):
        end = min(rows, begin + chunk)
        words = unions = None
        if waste:
            words, unions = build_unions(chosen[begin:end], blocks, begin, union_tile, waste)
            attend_unions(q, k, v, out, lse, unions, blocks, begin, end - begin, scale, union_tile)
        lists = build_lists(chosen[begin:end], blocks.num_blocks, per_item(ratio), words)
        launch(_visit, (len(lists.item_block),),
            q, k, v, partial, partial_lse, lists.entries, lists.begin, lists.count, lists.item_begin, lists.item_block,
            blocks.offsets, blocks.offsets if blocks.order is None else blocks.order, blocks.start, blocks.end,
            blocks.position, blocks.query_at, begin, end - begin, blocks.num_blocks, scale * LOG2E,
            H=heads, G=groups, S=slots, D=dim, HD=half(dim), BM=height, BN=keys, PER_ITEM=lists.per_item,
            PERMUTED=blocks.order is not None, IDENTITY=blocks.identity, PREC=precision(q.dtype),
            STAGES=tile.stages, num_warps=tile.warps,
        )  # fmt: skip
        launch(_join, (end - begin, groups),
            partial, partial_lse, chosen, out, lse, lists.count if unions is None else unions.count, begin, end - begin,
            H=heads, G=groups, S=slots, D=dim, DP=padded(dim), RP=padded(ratio, 1), SP=padded(slots, 1),
            STEP=math.gcd(slots, JOIN_STEP), UNIONS=unions is not None, QUERIES=union_tile.queries,
            num_warps=join_warps(ratio, dim),
        )  # fmt: skip
    return out, lse


def join_warps(ratio: int, dim: int) -> int:
    """Eight values for each thread of a join."""
    return max(1, min(8, padded(ratio, 1) * padded(dim) // 256))


def visit_tile(head_dim: int, keys: int, dtype: torch.dtype) -> Tile:
    """(query, head) rows against one block of `keys` keys."""
    if INTERPRET:
        return Tile(32, keys, 4, 1)
    if dtype == torch.float32:
        return Tile(32 if padded(head_dim) * keys <= 128 * 64 else 16, keys, 4, 1)
    if padded(head_dim) <= 128 and keys <= 128:
        # Entries are loaded first, then the queries they name: five stages keep two tiles of queries in flight.
        return Tile(64, keys, 4, 5 if keys <= 64 else 3)
    return Tile(64, keys, 8, 1)
