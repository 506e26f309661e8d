"""Selection attention over unions: a tile of neighbouring queries meets every block that one of them chose.

A program owns QUERIES queries of one group with all its R heads: row i of its BM rows is head i % R of query i // R, so
that 16 queries of 7 heads fill 112 of 128 rows. The rows, their softmax and what they sum up [BM, D] stay in the
program from the first block to the last: no slots, no join, and dq is summed in one order. Who did not choose the
block in hand gets an infinite shift, one number a row; scores are masked one by one only in blocks at the back of a
union, which are short or do not end before the tile's first query. dk and dv are sums over queries: `backward.py`.

Arguments of both kernels, beside q, k, v and what they write, all contiguous:
  met [3, tiles, G, MOST], count [2, tiles, G]   the unions (`unions.py`), int32; a tile of count 0 is not this walk's
  order [T]            place -> key, where PERMUTED; position [Tq]: query -> key, unless IDENTITY; int32
  query_begin, queries this round's queries; tile 0 begins at query_begin
  scale2               the logits' scale times log2(e): softmax is in base 2
  DP, BN               D, and the longest block, padded to powers of two
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.blocks import Blocks
from nsa_kernels.runtime import INTERPRET, LOG2E, launch, padded, precision
from nsa_kernels.selection.unions import Unions, UnionTile
from nsa_kernels.selection.walk import seen_keys
from nsa_kernels.tiles import exp2, load_rows, near_rows, store_rows


@triton.jit
def _rows_of_tile(tile, queries, R: tl.constexpr, BM: tl.constexpr, QUERIES: tl.constexpr):
    """For BM rows: their query inside the tile, inside the round, their head, and whether there is such a query."""
    row = tl.arange(0, BM)
    whole = row < QUERIES * R
    inner = tl.where(whole, row // R, 0)
    query = tile * QUERIES + inner
    return inner, query, row % R, whole & (query < queries)


@triton.jit
def _block(
    k, v, met, stride, order, at, inner,
    G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr, PERMUTED: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Keys and values [BN, DP] of the union's block `at`, their numbers [BN] in packed order, the block's first place
    and length, and which rows chose it. PART: it may be shorter than BN."""
    place = tl.load(met + at)
    chosen = ((tl.load(met + 2 * stride + at) >> inner) & 1) != 0
    n = tl.arange(0, BN)
    length = BN
    if PART:
        length = tl.load(met + stride + at)
    inside = n < length
    key = place + n
    if PERMUTED:
        key = tl.load(order + key, mask=inside, other=0)
    if PART or PERMUTED:
        kt = load_rows(k, key, inside, G * D, D, DP)
        vt = load_rows(v, key, inside, G * D, D, DP)
    else:
        skip = place.to(tl.int64) * (G * D)
        kt = near_rows(k + skip, n, G * D, D, DP)
        vt = near_rows(v + skip, n, G * D, D, DP)
    return kt, vt, key, place, length, chosen


@triton.jit
def _attend(
    qt, m, l, acc, k, v, met, stride, order, at, inner, pos, scale2,
    G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr, PERMUTED: tl.constexpr, PART: tl.constexpr,
    PREC: tl.constexpr,
):  # fmt: skip
    """Rows with maximum m, sum l and output acc meet block `at` of their union (FlashAttention-2, algorithm 1)."""
    kt, vt, key, place, length, chosen = _block(k, v, met, stride, order, at, inner, G, D, DP, BN, PERMUTED, PART)
    s = tl.dot(qt, tl.trans(kt), input_precision=PREC)
    if PART:
        s = tl.where(seen_keys(key, tl.arange(0, BN), place, length, pos, PERMUTED), s, float("-inf"))
    m_new = tl.where(chosen, tl.maximum(m, tl.max(s, 1) * scale2), m)
    p = exp2(s * scale2 - tl.where(chosen, m_new, float("inf"))[:, None])
    alpha = exp2(m - m_new)
    acc = tl.dot(p.to(vt.dtype), vt, acc * alpha[:, None], input_precision=PREC)
    return m_new, l * alpha + tl.sum(p, 1), acc


@triton.jit(do_not_specialize=["query_begin", "queries", "tiles"])
def _forward(
    q, k, v, out, lse, met, count, order, position, query_begin, queries, tiles, scale2,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    QUERIES: tl.constexpr, MOST: tl.constexpr, PERMUTED: tl.constexpr, IDENTITY: tl.constexpr, PREC: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Writes out [Tq, H, D] and its base-2 log-sum-exps lse [Tq, H] of this tile and group."""
    R: tl.constexpr = H // G
    tile = tl.program_id(0)
    g = tl.program_id(1)
    column = tile.to(tl.int64) * G + g
    stride = tiles.to(tl.int64) * G
    front = tl.load(count + column)
    back = tl.load(count + stride + column)
    if front + back == 0:
        return
    met += column * MOST
    stride *= MOST
    inner, query, head, real = _rows_of_tile(tile, queries, R, BM, QUERIES)
    query += query_begin
    pos = query
    if not IDENTITY:
        pos = tl.load(position + query, mask=real, other=-1)
    row = query * H + g * R + head
    qt = load_rows(q, row, real, D, D, DP)
    k += g * D
    v += g * D
    m = tl.full([BM], -1e30, tl.float32)  # finite, so that rows that have seen nothing make no NaN
    l = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, DP], tl.float32)
    for i in tl.range(0, front, num_stages=STAGES):
        m, l, acc = _attend(
            qt, m, l, acc, k, v, met, stride, order, i, inner, pos, scale2,
            G, D, DP, BN, PERMUTED, False, PREC,
        )  # fmt: skip
    for i in tl.range(0, back, num_stages=STAGES):
        m, l, acc = _attend(
            qt, m, l, acc, k, v, met, stride, order, MOST - 1 - i, inner, pos, scale2,
            G, D, DP, BN, PERMUTED, True, PREC,
        )  # fmt: skip
    nothing = l == 0
    tl.store(lse + row, tl.where(nothing, float("inf"), m + tl.log2(tl.where(nothing, 1.0, l))), mask=real)
    store_rows(out, acc * (1.0 / tl.where(nothing, 1.0, l))[:, None], row, real, D, D, DP)


@triton.jit
def _differentiate(
    qt, dot, lse_t, delta_t, acc, k, v, met, stride, order, at, inner, pos, scale2,
    G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr, PERMUTED: tl.constexpr, PART: tl.constexpr,
    PREC: tl.constexpr,
):  # fmt: skip
    """acc [BM, DP] plus what block `at` of the union gives to dq (FlashAttention-2, algorithm 2)."""
    kt, vt, key, place, length, chosen = _block(k, v, met, stride, order, at, inner, G, D, DP, BN, PERMUTED, PART)
    s = tl.dot(qt, tl.trans(kt), input_precision=PREC)
    p = exp2(s * scale2 - tl.where(chosen, lse_t, float("inf"))[:, None])
    if PART:
        p = tl.where(seen_keys(key, tl.arange(0, BN), place, length, pos, PERMUTED), p, 0.0)
    ds = p * (tl.dot(dot, tl.trans(vt), input_precision=PREC) - delta_t[:, None])
    return tl.dot(ds.to(kt.dtype), kt, acc, input_precision=PREC)


@triton.jit(do_not_specialize=["query_begin", "queries", "tiles"])
def _backward(
    q, k, v, do, lse, delta, dq, met, count, order, position, query_begin, queries, tiles, scale, scale2,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    QUERIES: tl.constexpr, MOST: tl.constexpr, PERMUTED: tl.constexpr, IDENTITY: tl.constexpr, PREC: tl.constexpr,
    STAGES: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Writes dq [Tq, H, D] of this tile and group, or with ADD adds to it.

    do [queries, H, D] are this round's gradients of the output; lse, delta [Tq, H] float32, delta the products of do
    and the output over D.
    """
    R: tl.constexpr = H // G
    tile = tl.program_id(0)
    g = tl.program_id(1)
    column = tile.to(tl.int64) * G + g
    stride = tiles.to(tl.int64) * G
    front = tl.load(count + column)
    back = tl.load(count + stride + column)
    if front + back == 0:
        return
    met += column * MOST
    stride *= MOST
    inner, query, head, real = _rows_of_tile(tile, queries, R, BM, QUERIES)
    dot = load_rows(do, query * H + g * R + head, real, D, D, DP)
    query += query_begin
    pos = query
    if not IDENTITY:
        pos = tl.load(position + query, mask=real, other=-1)
    row = query * H + g * R + head
    qt = load_rows(q, row, real, D, D, DP)
    lse_t = tl.load(lse + row, mask=real, other=float("inf"))
    delta_t = tl.load(delta + row, mask=real, other=0.0)
    k += g * D
    v += g * D
    acc = tl.zeros([BM, DP], tl.float32)
    for i in tl.range(0, front, num_stages=STAGES):
        acc = _differentiate(
            qt, dot, lse_t, delta_t, acc, k, v, met, stride, order, i, inner, pos, scale2,
            G, D, DP, BN, PERMUTED, False, PREC,
        )  # fmt: skip
    for i in tl.range(0, back, num_stages=STAGES):
        acc = _differentiate(
            qt, dot, lse_t, delta_t, acc, k, v, met, stride, order, MOST - 1 - i, inner, pos, scale2,
            G, D, DP, BN, PERMUTED, True, PREC,
        )  # fmt: skip
    acc *= scale
    if ADD:
        acc += load_rows(dq, row, real, D, D, DP).to(tl.float32)
    store_rows(dq, acc, row, real, D, D, DP)


def attend_unions(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, unions: Unions, blocks: Blocks, begin: int, queries: int,
    scale: float, tile: UnionTile,
) -> None:  # fmt: skip
    """Write out [Tq, H, D] and lse [Tq, H] of those tiles of queries begin..begin + queries that go over unions."""
    launch(_forward, (unions.tiles, k.shape[1]),
        q, k, v, out, lse, *_union_arguments(unions, blocks, begin, queries), scale * LOG2E,
        **_union_options(q, k, unions, blocks, tile),
    )  # fmt: skip


def differentiate_unions(
    q: Tensor, k: Tensor, v: Tensor, do: Tensor, lse: Tensor, delta: Tensor, dq: Tensor, unions: Unions, blocks: Blocks,
    begin: int, queries: int, scale: float, tile: UnionTile, *, add: bool,
) -> None:  # fmt: skip
    """Write dq [Tq, H, D], or add to it, for those tiles of queries begin..begin + queries that go over unions.

    do [queries, H, D] is this round's.
    """
    launch(_backward, (unions.tiles, k.shape[1]),
        q, k, v, do, lse, delta, dq, *_union_arguments(unions, blocks, begin, queries), scale, scale * LOG2E,
        ADD=add, **_union_options(q, k, unions, blocks, tile),
    )  # fmt: skip


def _union_arguments(unions: Unions, blocks: Blocks, begin: int, queries: int) -> tuple[Tensor | int, ...]:
    order = blocks.offsets if blocks.order is None else blocks.order
    return unions.met, unions.count, order, blocks.position, begin, queries, unions.tiles


def _union_options(q: Tensor, k: Tensor, unions: Unions, blocks: Blocks, tile: UnionTile) -> dict[str, int | str]:
    _, heads, dim = q.shape
    return {
        "H": heads, "G": k.shape[1], "D": dim, "DP": padded(dim), "BM": tile.rows, "BN": tile.keys,
        "QUERIES": tile.queries, "MOST": unions.most, "PERMUTED": blocks.order is not None,
        "IDENTITY": blocks.identity, "PREC": precision(q.dtype), "STAGES": tile.stages, "num_warps": tile.warps,
    }  # fmt: skip


def forward_tile(head_dim: int, keys: int, ratio: int, dtype: torch.dtype) -> UnionTile:
    """Rows of (query, head) pairs that meet blocks of `keys` keys."""
    if INTERPRET:
        return UnionTile.of(32, keys, 4, 1, ratio)
    if dtype == torch.float32:
        return UnionTile.of(16, keys, 4, 1, ratio)
    if padded(head_dim) > 128:
        return UnionTile.of(64, keys, 8, 1, ratio)
    return UnionTile.of(128, keys, 8, 2, ratio)


def backward_tile(head_dim: int, keys: int, ratio: int, dtype: torch.dtype) -> UnionTile:
    """As in the forward, beside the output's gradients."""
    return forward_tile(head_dim, keys, ratio, dtype)
