"""Selection attention, backward: the same walk over key blocks, which sums dk and dv in registers.

`_visit`: a program owns one work item, as in the forward. Query gradients leave as partial sums in the query's
slots, as outputs do in the forward, or are made from gathered keys (`gathered.py`) without slots, so nothing is added
atomically and two runs are bit-equal. Where a list is cut into several items, the first adds to the block's gradient
itself and the others leave theirs for `_gather`, whose program owns one (group, block) and adds them in order.
`_join_queries`: a program owns one (query, group) and sums its slots into dq.

Beside the names of `tiles.py` and of the forward:
  do [queries, H, D]                      of this round, multiplied by the gate
  lse, delta [Tq, H]                      delta of this `do`
  partial [G, queries, S, R, D]           slots of query gradients, in the inputs' dtype; scaled already in float16
  extra_k, extra_v [extras, BN, D] float32    what later items of a list leave; extra_begin [G * N]: where a list's are
  ADD                                     dq holds gradients of other branches already
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.blocks import Blocks
from nsa_kernels.runtime import INTERPRET, LOG2E, Tile, empty, launch, padded, precision
from nsa_kernels.selection.forward import JOIN_STEP, join_warps, shape_of
from nsa_kernels.selection.gathered import gathered_query_gradients
from nsa_kernels.selection.lists import build_lists
from nsa_kernels.selection.pack import LEAST_KEYS, pack_blocks, pack_size
from nsa_kernels.selection.split import split_blocks
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
    store_halves,
    store_products,
)
from nsa_kernels.tiles import exp2, load_rows, store_rows
from nsa_kernels.workspace import BACKWARD_KEYS, keys_held, selection_chunk


@triton.jit
def _add_rows(x, left, right, rows, seen, stride, D: tl.constexpr, HD: tl.constexpr):
    """Add the two halves of [BN, D] to rows of x."""
    old_left, old_right = load_halves(x, rows, seen, stride, D, HD)
    store_halves(x, left + old_left, right + old_right, rows, seen, stride, D, HD)


@triton.jit(do_not_specialize=["inner_blocks", "query_begin", "queries", "N"])
def _visit(
    q, k, v, do, lse, delta, partial, dk, dv, extra_k, extra_v,
    entries, list_begin, list_count, item_begin, extra_begin, item_block,
    offsets, order, start, end, position, query_at, inner, inner_blocks, query_begin, queries, N, scale, scale2,
    H: tl.constexpr, G: tl.constexpr, S: tl.constexpr, D: tl.constexpr, HD: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, PER_ITEM: tl.constexpr, PERMUTED: tl.constexpr,
    PREC: tl.constexpr, IDENTITY: tl.constexpr, STAGES: tl.constexpr, PACK: tl.constexpr,
):  # fmt: skip
    """PACK: the blocks are packs of so many of those that `inner` [inner_blocks + 1] cuts, entries hold a bit for each
    of them instead of a slot (S is 2^PACK), and there are no slots to write; 0 for blocks and slots."""
    R: tl.constexpr = H // G
    PAIRS: tl.constexpr = BM // R
    column = tl.load(item_block + tl.program_id(0))
    if column >= G * N:
        return
    g = column // N
    block = column % N
    begin, stop, entry_at = list_part(entries, list_begin, list_count, item_begin, column, PER_ITEM)
    place, length, n, key = block_keys(offsets, order, block, BN, PERMUTED)
    inside = n < length
    k0, k1 = load_halves(k + g * D, key, inside, G * D, D, HD)
    v0, v1 = load_halves(v + g * D, key, inside, G * D, D, HD)
    masked = entries_to_mask(
        query_at, start, end, position, entry_at, block, query_begin, stop, length == BN, S, IDENTITY
    )
    part = tl.zeros([BN], tl.int32)
    for j in tl.static_range(1, PACK):
        part += (place + n >= tl.load(inner + tl.minimum(block * PACK + j, inner_blocks))).to(tl.int32)
    acc_k0 = tl.zeros([BN, HD], tl.float32)
    acc_k1 = tl.zeros([BN, HD], tl.float32)
    acc_v0 = tl.zeros([BN, HD], tl.float32)
    acc_v1 = tl.zeros([BN, HD], tl.float32)

    pair_in_tile, head, whole = pairs_of_tile(BM, R)
    skip = query_begin.to(tl.int64) * H + g * R
    q += skip * D
    do += g * R * D
    lse += skip
    delta += skip
    partial += g.to(tl.int64) * queries * S * R * D
    for pair0 in tl.range(begin, stop, PAIRS, num_stages=STAGES):
        pair = pair0 + pair_in_tile
        real = whole & (pair < stop)
        entry = tl.load(entry_at + tl.minimum(pair, stop - 1))
        query = entry // S
        row = query * H + head
        q0, q1 = near_halves(q, row, D, HD)
        do0, do1 = near_halves(do, row, D, HD)
        lse_t = tl.load(lse + row, mask=real, other=float("inf"))
        delta_t = tl.load(delta + row)
        p = exp2(dot_halves(q0, q1, k0, k1, PREC) * scale2 - lse_t[:, None])
        if pair0 < masked:
            pos = query_begin + query
            if not IDENTITY:
                pos = tl.load(position + pos)
            p = tl.where(seen_keys(key, n, place, length, pos, PERMUTED), p, 0.0)
        if PACK > 1:
            p = tl.where((((entry % S)[:, None] >> part[None, :]) & 1) != 0, p, 0.0)
        wide = p * (dot_halves(do0, do1, v0, v1, PREC) - delta_t[:, None])
        ds = wide.to(q0.dtype)
        weight = tl.trans(p.to(do0.dtype))
        acc_v0 = tl.dot(weight, do0, acc_v0, input_precision=PREC)
        acc_v1 = tl.dot(weight, do1, acc_v1, input_precision=PREC)
        acc_k0 = tl.dot(tl.trans(ds), q0, acc_k0, input_precision=PREC)
        acc_k1 = tl.dot(tl.trans(ds), q1, acc_k1, input_precision=PREC)
        if PACK == 0:
            if q0.dtype == tl.float16:  # unscaled, the partial sums overflow before dq does
                ds = (wide * scale).to(q0.dtype)
            store_products(partial, ds, k0, k1, entry * R + head, real, D, HD, PREC)
    acc_k0 *= scale
    acc_k1 *= scale
    if begin == 0:
        _add_rows(dk + g * D, acc_k0, acc_k1, key, inside, G * D, D, HD)
        _add_rows(dv + g * D, acc_v0, acc_v1, key, inside, G * D, D, HD)
    else:
        at = (tl.load(extra_begin + column) + begin // PER_ITEM - 1).to(tl.int64) * BN + n
        store_halves(extra_k, acc_k0, acc_k1, at, inside, D, D, HD)
        store_halves(extra_v, acc_v0, acc_v1, at, inside, D, D, HD)


@triton.jit(do_not_specialize=["N"])
def _gather(
    dk, dv, extra_k, extra_v, list_count, extra_begin, offsets, order, N,
    G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr, PER_ITEM: tl.constexpr,
    PERMUTED: tl.constexpr,
):  # fmt: skip
    """Add what the later items of a list left to the gradient of its block."""
    column = tl.program_id(0)
    parts = tl.cdiv(tl.load(list_count + column), PER_ITEM)
    if parts < 2:
        return
    g = column // N
    block = column % N
    _, length, n, key = block_keys(offsets, order, block, BN, PERMUTED)
    inside = n < length
    at = tl.load(extra_begin + column).to(tl.int64) * BN + n
    sum_k = load_rows(dk + g * D, key, inside, G * D, D, DP)
    sum_v = load_rows(dv + g * D, key, inside, G * D, D, DP)
    for _ in range(1, parts):
        sum_k += load_rows(extra_k, at, inside, D, D, DP)
        sum_v += load_rows(extra_v, at, inside, D, D, DP)
        at += BN
    store_rows(dk + g * D, sum_k, key, inside, G * D, D, DP)
    store_rows(dv + g * D, sum_v, key, inside, G * D, D, DP)


@triton.jit(do_not_specialize=["query_begin", "queries"])
def _join_queries(
    partial, chosen, dq, query_begin, queries, scale,
    H: tl.constexpr, G: tl.constexpr, S: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, RP: tl.constexpr,
    STEP: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    R: tl.constexpr = H // G
    local = tl.program_id(0).to(tl.int64)
    g = tl.program_id(1)
    query = query_begin + local
    r = tl.arange(0, RP)
    d = tl.arange(0, DP)
    inside = (r < R)[:, None] & (d < D)[None, :]
    at = (query * H + g * R + r)[:, None] * D + d[None, :]
    acc = tl.zeros([RP, DP], tl.float32)
    for s0 in range(0, S, STEP):
        for i in tl.static_range(STEP):
            s = s0 + i
            there = (tl.load(chosen + (query * G + g) * S + s + r * 0) >= 0)[:, None] & inside
            row = ((g.to(tl.int64) * queries + local) * S + s) * R + r
            acc += tl.load(partial + row[:, None] * D + d[None, :], mask=there, other=0.0).to(tl.float32)
    acc *= scale
    if ADD:
        acc += tl.load(dq + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(dq + at, acc.to(dq.dtype.element_ty), mask=inside)


def selection_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    chosen: Tensor,
    do: Tensor,
    lse: Tensor,
    gate: Tensor | None,
    delta: Tensor,
    blocks: Blocks,
    scale: float,
    dk: Tensor,
    dv: Tensor,
    dq: Tensor | None = None,
    most: int = BACKWARD_KEYS,
    gathered: bool | None = None,
) -> Tensor:
    """dq [Tq, H, D]; adds to dk and dv [T, G, D] float32, and to `dq` where one is given.

    gate [Tq, H] multiplied the output. lse, delta [Tq, H] float32; delta is the gated `do` times the output, over D.
    most: keys of a block that a program holds; larger blocks are read in parts, each with a slot of its own.
    gathered: see `shape_of`.
    """
    rows, heads, dim = q.shape
    groups, ratio = k.shape[1], heads // k.shape[1]
    shape = shape_of(q, k, chosen, blocks, gathered)
    chunk = selection_chunk(shape, per_item(ratio), most)
    limit = keys_held(dim, q.element_size(), most)
    if not shape.gathered:
        blocks, chosen = split_blocks(blocks, chosen, limit)
    slots = chosen.shape[2]
    add = dq is not None
    dq = empty(tuple(q.shape), q) if dq is None else dq
    if not rows:
        return dq
    partial = None if shape.gathered else empty((groups * chunk * slots * ratio, dim), q)
    for begin in range(0, rows, chunk):
        end = min(rows, begin + chunk)
        gated = do[begin:end] if gate is None else (do[begin:end] * gate[begin:end, :, None]).to(do.dtype)
        parts, some = split_blocks(blocks, chosen[begin:end], limit)
        _visit_lists(q, k, v, gated, lse, delta, partial, dk, dv, some, parts, begin, scale)
        if partial is None:
            gathered_query_gradients(q, k, v, gated, lse, delta, dq, chosen, blocks, begin, scale, add)
            continue
        launch(_join_queries, (end - begin, groups),
            partial, chosen, dq, begin, end - begin, 1.0 if q.dtype == torch.float16 else scale,
            H=heads, G=groups, S=slots, D=dim, DP=padded(dim), RP=padded(ratio, 1),
            STEP=math.gcd(slots, JOIN_STEP), ADD=add, num_warps=join_warps(ratio, dim),
        )  # fmt: skip
    return dq


def _visit_lists(
    q: Tensor, k: Tensor, v: Tensor, gated: Tensor, lse: Tensor, delta: Tensor, partial: Tensor | None, dk: Tensor,
    dv: Tensor, chosen: Tensor, blocks: Blocks, begin: int, scale: float,
) -> None:  # fmt: skip
    """Add to dk and dv what queries from `begin` on give, of gated gradients [C, H, D] and choices chosen [C, G, S];
    and write their slots `partial` of dq, where there are any."""
    _, heads, dim = q.shape
    groups, slots = chosen.shape[1:]
    inner, pack = blocks, 0
    if partial is None:
        pack = pack_size(blocks.longest)
        blocks, slots = pack_blocks(blocks, pack), 2**pack
    keys = padded(blocks.longest)
    tile = visit_tile(dim, keys, q.dtype, slots=partial is not None)
    lists = build_lists(chosen, blocks.num_blocks, per_item(heads // groups), pack=pack)
    extra_k, extra_v = (empty((max(1, lists.extras), keys, dim), q, torch.float32) for _ in range(2))
    shape = {"G": groups, "D": dim, "BN": keys, "PERMUTED": blocks.order is not None, "PER_ITEM": lists.per_item}
    order = blocks.offsets if blocks.order is None else blocks.order
    launch(_visit, (len(lists.item_block),),
        q, k, v, gated, lse, delta, q if partial is None else partial, dk, dv, extra_k, extra_v,
        lists.entries, lists.begin, lists.count, lists.item_begin, lists.extra_begin, lists.item_block,
        blocks.offsets, order, blocks.start, blocks.end, blocks.position, blocks.query_at,
        inner.offsets, inner.num_blocks, begin, len(chosen), blocks.num_blocks, scale, scale * LOG2E,
        H=heads, S=slots, HD=half(dim), BM=max(tile.rows, padded(heads // groups)), IDENTITY=blocks.identity,
        PREC=precision(q.dtype), STAGES=tile.stages, PACK=pack, num_warps=tile.warps, **shape,
    )  # fmt: skip
    launch(_gather, (groups * blocks.num_blocks,),
        dk, dv, extra_k, extra_v, lists.count, lists.extra_begin, blocks.offsets, order, blocks.num_blocks,
        DP=padded(dim), num_warps=8, **shape,
    )  # fmt: skip


def per_item(ratio: int) -> int:
    """As in the forward, but longer: every later item of a list costs a pass over the block's gradient."""
    return 6 if INTERPRET else 64 * max(1, 64 // ratio)


def visit_tile(head_dim: int, keys: int, dtype: torch.dtype, slots: bool = True) -> Tile:
    """As in the forward; dk, dv and, with slots, a tile of dq share the registers, so tiles are smaller."""
    if INTERPRET:
        return Tile(32, keys, 4, 1)
    if dtype == torch.float32:
        return Tile(16, keys, 4 if padded(head_dim) * keys <= 128 * 64 else 8, 1)
    if keys <= LEAST_KEYS and not slots:
        return Tile(64, keys, 4, 3)  # entries a stage ahead of the queries they name
    if padded(head_dim) > 128 or keys > 128:
        return Tile(32, keys, 8, 1)
    return Tile(64, keys, 4, 2) if keys <= 64 else Tile(64, keys, 8, 1)
