"""Selection attention over unions: a tile of neighbouring queries meets every block that one of them chose.

A program owns one tile after another: QUERIES queries of one group with all its R heads. Row i of BM is head i % R of
query i // R, so that 8 queries of 7 heads fill 56 of 64 rows. The rows, their softmax and what they sum up [BM, D] stay
in registers from a tile's first block to its last: no slots, no join. Who did not choose the block in hand gets an
infinite shift, one number a row; scores are masked one by one only in blocks at the back of a union, which are short or
do not end before the tile's first query. The backward walks over lists alone: dk and dv are sums over queries, and dq
over unions saved less than it cost (LOG.md).

Arguments, all contiguous:
  q [Tq, H, D], k, v [T, G, D]; writes out [Tq, H, D] and its base-2 log-sum-exps lse [Tq, H] float32
  met [3, tiles, G, MOST], count [2, tiles, G], taken [tiles * G], taken_count [1]   the unions (`unions.py`), int32
  order [T]            place -> key, where PERMUTED; position [Tq]: query -> key, unless IDENTITY; int32
  query_begin, queries this round's queries; tile 0 begins at query_begin
  scale2               the logits' scale times log2(e): softmax is in base 2
  DP, BN               D, and the longest block, padded to powers of two
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.blocks import Blocks
from nsa_kernels.runtime import INTERPRET, LOG2E, launch, padded, precision
from nsa_kernels.selection.unions import Unions, UnionTile
from nsa_kernels.selection.walk import seen_keys
from nsa_kernels.tiles import exp2, load_rows, near_rows, store_rows

PROGRAMS = 8
"""Of the walk for each multiprocessor, which holds about two at a time."""


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
def _meet(
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


@triton.jit(do_not_specialize=["query_begin", "queries", "tiles"], do_not_specialize_on_alignment=["taken_count"])
def _attend(
    q, k, v, out, lse, met, count, taken, taken_count, order, position, query_begin, queries, tiles, scale2,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    QUERIES: tl.constexpr, MOST: tl.constexpr, PERMUTED: tl.constexpr, IDENTITY: tl.constexpr, PREC: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    R: tl.constexpr = H // G
    stride = tiles.to(tl.int64) * G
    for i in range(tl.program_id(0), tl.load(taken_count), tl.num_programs(0)):
        column = tl.load(taken + i)
        tile = column // G
        g = column % G
        union = tl.load(count + column)
        front = tl.load(count + stride + column)
        blocks = met + column.to(tl.int64) * MOST
        inner, query, head, real = _rows_of_tile(tile, queries, R, BM, QUERIES)
        query += query_begin
        pos = query
        if not IDENTITY:
            pos = tl.load(position + query, mask=real, other=-1)
        row = query * H + g * R + head
        qt = load_rows(q, row, real, D, D, DP)
        m = tl.full([BM], -1e30, tl.float32)  # finite, so that rows that have seen nothing make no NaN
        l = tl.zeros([BM], tl.float32)
        acc = tl.zeros([BM, DP], tl.float32)
        for at in tl.range(0, front, num_stages=STAGES):
            m, l, acc = _meet(
                qt, m, l, acc, k + g * D, v + g * D, blocks, stride * MOST, order, at, inner, pos, scale2,
                G, D, DP, BN, PERMUTED, False, PREC,
            )  # fmt: skip
        for at in tl.range(MOST + front - union, MOST, num_stages=STAGES):
            m, l, acc = _meet(
                qt, m, l, acc, k + g * D, v + g * D, blocks, stride * MOST, order, at, inner, pos, scale2,
                G, D, DP, BN, PERMUTED, True, PREC,
            )  # fmt: skip
        nothing = l == 0
        tl.store(lse + row, tl.where(nothing, float("inf"), m + tl.log2(tl.where(nothing, 1.0, l))), mask=real)
        store_rows(out, acc * (1.0 / tl.where(nothing, 1.0, l))[:, None], row, real, D, D, DP)


def attend_unions(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, unions: Unions, blocks: Blocks, begin: int, queries: int,
    scale: float, tile: UnionTile,
) -> None:  # fmt: skip
    """Write out [Tq, H, D] and lse [Tq, H] of those tiles of queries begin..begin + queries that go over unions."""
    _, heads, dim = q.shape
    groups = k.shape[1]
    order = blocks.offsets if blocks.order is None else blocks.order
    launch(_attend, (min(unions.tiles * groups, programs(q.device)),),
        q, k, v, out, lse, unions.met, unions.count, unions.taken, unions.taken_count, order, blocks.position,
        begin, queries, unions.tiles, scale * LOG2E,
        H=heads, G=groups, D=dim, DP=padded(dim), BM=tile.rows, BN=tile.keys, QUERIES=tile.queries, MOST=unions.most,
        PERMUTED=blocks.order is not None, IDENTITY=blocks.identity, PREC=precision(q.dtype), STAGES=tile.stages,
        num_warps=tile.warps,
    )  # fmt: skip


@functools.cache
def programs(device: torch.device) -> int:
    """So many share the tiles: several rounds of what the GPU holds, but few where no tile goes over its union."""
    if device.type != "cuda":
        return 5
    return PROGRAMS * torch.cuda.get_device_properties(device).multi_processor_count


def forward_tile(head_dim: int, keys: int, ratio: int, dtype: torch.dtype) -> UnionTile:
    """Rows of (query, head) pairs that meet blocks of `keys` keys."""
    if INTERPRET:
        return UnionTile.of(32, keys, 4, 1, ratio)
    if dtype == torch.float32:
        return UnionTile.of(16, keys, 4, 1, ratio)
    if padded(head_dim) > 128:
        return UnionTile.of(64, keys, 8, 1, ratio)
    if keys > 64:
        return UnionTile.of(128, keys, 8, 2, ratio)
    return UnionTile.of(64, keys, 4, 2, ratio)
