"""Selection attention by gathering: each (query, group) meets the keys of the blocks it chose, whoever else chose them.

For many small blocks. `_attend` and `_query_gradients`: a program owns one (query, group), for the keys it reads are
that query's alone. Its rows are the heads of the group, padded to what tl.dot multiplies (7 of 16). It walks over its
slots in tiles of BK keys: BK / BN blocks side by side, or longer blocks in parts. Rows, softmax and what they sum up
stay in registers from the first tile to the last, so nothing goes through slots; the price is that every chosen key and
value is read for one query (`bench/roofline.py` counts it). Programs run group by group, so that caches hold the keys
of one group at a time. dk and dv are sums over queries, which the walk over lists makes (`backward.py`).

Beside the names of `tiles.py`:
  gated [queries, H, D]                   `do` times the gate, of queries from query_begin on; delta [Tq, H] of it
  lse [Tq, H]                             queries first, as in the walk over lists
  chosen [Tq, G, S] int32                 S slots of a choice, -1 for an empty one; SP: padded to a power of two
  BN                                      the longest block, padded so
  ADD                                     dq holds gradients of other branches already
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.blocks import Blocks
from nsa_kernels.runtime import INTERPRET, LOG2E, Tile, empty, launch, padded, precision
from nsa_kernels.tiles import add_query_gradient, load_rows, online_softmax, store_rows


@triton.jit
def _rows(query, H: tl.constexpr, G: tl.constexpr, BM: tl.constexpr):
    """Where the rows of a query's group stand among all (query, head) pairs, and which of BM there are."""
    r = tl.arange(0, BM)
    return query * H + tl.program_id(1) * (H // G) + r, r < H // G


@triton.jit
def _tiles(chosen, S: tl.constexpr, SP: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr):
    """So many tiles of BK keys reach to the last slot of chosen [S] that holds a block."""
    slot = tl.arange(0, SP)
    holds = tl.load(chosen + slot, mask=slot < S, other=-1) >= 0
    return tl.cdiv(tl.max(tl.where(holds, slot + 1, 0), 0) * BN, BK)


@triton.jit
def _keys(
    chosen, offsets, order, tile, pos,
    S: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr, PERMUTED: tl.constexpr,
):  # fmt: skip
    """Numbers [BK] of a tile's keys in packed order, and which of them stand in a block and not after position pos."""
    at = tile * BK + tl.arange(0, BK)
    slot = at // BN
    n = at % BN
    block = tl.load(chosen + slot, mask=slot < S, other=-1)
    holds = block >= 0
    place = tl.load(offsets + block, mask=holds, other=0)
    inside = n < tl.load(offsets + block + 1, mask=holds, other=0) - place
    key = place + n
    if PERMUTED:
        key = tl.load(order + key, mask=inside, other=0)
    return key, inside & (key <= pos)


@triton.jit
def _meet(
    q, k, v, chosen, offsets, order, tile, pos, scale2, stride,
    S: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr, PERMUTED: tl.constexpr,
    PREC: tl.constexpr,
):  # fmt: skip
    """Keys and values [BK, DP] of a tile, rows `stride` apart, and base-2 logits [BM, BK] of q; -inf where not seen."""
    key, seen = _keys(chosen, offsets, order, tile, pos, S, BK, BN, PERMUTED)
    kt = load_rows(k, key, seen, stride, D, DP)
    vt = load_rows(v, key, seen, stride, D, DP)
    s = tl.dot(q, tl.trans(kt), input_precision=PREC) * scale2
    return kt, vt, tl.where(seen[None, :], s, float("-inf"))


@triton.jit
def _attend(
    q, k, v, out, lse, chosen, offsets, order, position, scale2,
    H: tl.constexpr, G: tl.constexpr, S: tl.constexpr, SP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr, PERMUTED: tl.constexpr, PREC: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    query = tl.program_id(0).to(tl.int64)
    g = tl.program_id(1)
    chosen += (query * G + g) * S
    k += g * D
    v += g * D
    row, real = _rows(query, H, G, BM)
    pos = tl.load(position + query)
    qt = load_rows(q, row, real, D, D, DP)
    m = tl.full([BM], float("-inf"), tl.float32)
    l = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, DP], tl.float32)
    for tile in tl.range(0, _tiles(chosen, S, SP, BK, BN), num_stages=STAGES):
        _, vt, s = _meet(qt, k, v, chosen, offsets, order, tile, pos, scale2, G * D, S, D, DP, BK, BN, PERMUTED, PREC)
        m, l, p, alpha = online_softmax(m, l, s, True)
        acc = tl.dot(p.to(vt.dtype), vt, acc * alpha[:, None], input_precision=PREC)
    nothing = l == 0
    total = tl.where(nothing, 1.0, l)
    tl.store(lse + row, tl.where(nothing, float("inf"), m + tl.log2(total)), mask=real)
    store_rows(out, acc * (1.0 / total)[:, None], row, real, D, D, DP)


@triton.jit(do_not_specialize=["query_begin"])
def _query_gradients(
    q, k, v, gated, lse, delta, dq, chosen, offsets, order, position, query_begin, scale, scale2,
    H: tl.constexpr, G: tl.constexpr, S: tl.constexpr, SP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr, PERMUTED: tl.constexpr, ADD: tl.constexpr,
    PREC: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    local = tl.program_id(0).to(tl.int64)
    query = query_begin + local
    g = tl.program_id(1)
    chosen += (query * G + g) * S
    k += g * D
    v += g * D
    row, real = _rows(query, H, G, BM)
    pos = tl.load(position + query)
    qt = load_rows(q, row, real, D, D, DP)
    do = load_rows(gated, _rows(local, H, G, BM)[0], real, D, D, DP)
    lse_t = tl.load(lse + row, mask=real, other=float("inf"))
    delta_t = tl.load(delta + row, mask=real, other=0.0)
    gate = tl.full([BM], 1.0, tl.float32)
    acc = tl.zeros([BM, DP], tl.float32)
    for tile in tl.range(0, _tiles(chosen, S, SP, BK, BN), num_stages=STAGES):
        kt, vt, s = _meet(qt, k, v, chosen, offsets, order, tile, pos, scale2, G * D, S, D, DP, BK, BN, PERMUTED, PREC)
        acc = add_query_gradient(acc, s, kt, vt, do, lse_t, gate, delta_t, PREC)
    acc *= scale
    if ADD:
        acc += load_rows(dq, row, real, D, D, DP).to(tl.float32)
    store_rows(dq, acc, row, real, D, D, DP)


def attend_gathered(
    q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, blocks: Blocks, scale: float
) -> tuple[Tensor, Tensor]:
    """As `selection_forward`: output [Tq, H, D] and base-2 log-sum-exp [Tq, H] float32, +inf where nothing is seen."""
    rows, heads, _ = q.shape
    out, lse = empty(tuple(q.shape), q), q.new_empty((rows, heads), dtype=torch.float32)
    if rows:
        launch(_attend, (rows, k.shape[1]),
            q, k, v, out, lse, chosen, *_geometry(blocks), scale * LOG2E,
            **_sizes(q, k, chosen, blocks),
        )  # fmt: skip
    return out, lse


def gathered_query_gradients(
    q: Tensor, k: Tensor, v: Tensor, gated: Tensor, lse: Tensor, delta: Tensor, dq: Tensor, chosen: Tensor,
    blocks: Blocks, begin: int, scale: float, add: bool,
) -> None:  # fmt: skip
    """Write dq [Tq, H, D] of the queries of gated [C, H, D], which begin at `begin`, or add to what stands there."""
    launch(_query_gradients, (len(gated), k.shape[1]),
        q, k, v, gated, lse, delta, dq, chosen, *_geometry(blocks), begin, scale, scale * LOG2E,
        ADD=add, **_sizes(q, k, chosen, blocks),
    )  # fmt: skip


def gather_tile(head_dim: int, ratio: int, dtype: torch.dtype) -> Tile:
    """The `ratio` heads of one query against so many gathered keys."""
    rows = padded(ratio)
    if INTERPRET:
        return Tile(rows, 32, 4, 1)
    if dtype == torch.float32:
        return Tile(rows, 16, 8 if padded(head_dim) > 128 else 4, 1)
    # Blocks' numbers, their places and the keys are loaded one after another: four stages keep one tile in flight.
    if padded(head_dim) > 128:
        return Tile(rows, 32, 8 if rows > 32 else 4, 4)
    return Tile(rows, 64, 4, 4)


def _geometry(blocks: Blocks) -> tuple[Tensor, Tensor, Tensor]:
    return blocks.offsets, blocks.offsets if blocks.order is None else blocks.order, blocks.position


def _sizes(q: Tensor, k: Tensor, chosen: Tensor, blocks: Blocks) -> dict[str, object]:
    _, heads, dim = q.shape
    groups, slots = k.shape[1], chosen.shape[2]
    tile = gather_tile(dim, heads // groups, q.dtype)
    return {
        "H": heads, "G": groups, "S": slots, "SP": padded(slots, 1), "D": dim, "DP": padded(dim), "BM": tile.rows,
        "BK": tile.keys, "BN": padded(blocks.longest, 1), "PERMUTED": blocks.order is not None,
        "PREC": precision(q.dtype), "STAGES": tile.stages, "num_warps": tile.warps,
    }  # fmt: skip
