"""Sliding-window attention, backward: one kernel for the queries, one for the keys and values.

`_queries`: laid out as the forward. `_keys`: a program owns BN keys and values of one group, and walks over the
queries that see them, head after head, both gradients in registers. A window is short, so that no list need be cut
and nothing be added afterwards. One kernel for both would have to add one of the gradients atomically.

Beside the names of `tiles.py`: lse, gate, delta [H, Tq]; size, in keys; ADD: dq holds gradients of other branches.
"""

import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.blocks import Blocks
from nsa_kernels.runtime import LOG2E, cdiv, empty, key_tile, launch, padded, precision, query_tile
from nsa_kernels.tiles import add_key_gradients, add_query_gradient, exp2, gradient_rows, load_rows, store_rows


@triton.jit(do_not_specialize=["Tq", "size"])
def _queries(
    q, k, v, do, lse, gate, delta, dq, position, sample_start, Tq, size, scale, scale2,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    ADD: tl.constexpr, GATE: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    h = tl.program_id(0)
    g = h // (H // G)
    row0 = tl.program_id(1) * BM
    rows = row0 + tl.arange(0, BM)
    real = rows < Tq
    pos = tl.load(position + rows, mask=real, other=-1)
    first = tl.maximum(tl.load(sample_start + rows, mask=real, other=0), pos - size + 1)
    high = tl.load(position + tl.minimum(row0 + BM, Tq) - 1) + 1
    begin = tl.maximum(tl.load(sample_start + row0), tl.load(position + row0) - size + 1)
    qt, dot, lse_t, delta_t, gate_t = gradient_rows(q, do, lse, delta, gate, h, rows, real, Tq, H, D, DP, BM, GATE)
    acc = tl.zeros([BM, DP], tl.float32)
    for n0 in range(begin, high, BN):
        n = n0 + tl.arange(0, BN)
        kt = load_rows(k + g * D, n, n < high, G * D, D, DP)
        vt = load_rows(v + g * D, n, n < high, G * D, D, DP)
        s = tl.dot(qt, tl.trans(kt), input_precision=PREC) * scale2
        s = tl.where((n[None, :] <= pos[:, None]) & (n[None, :] >= first[:, None]), s, float("-inf"))
        acc = add_query_gradient(acc, s, kt, vt, dot, lse_t, gate_t, delta_t, PREC)
    acc *= scale
    if ADD:
        acc += load_rows(dq + h * D, rows, real, H * D, D, DP).to(tl.float32)
    store_rows(dq + h * D, acc, rows, real, H * D, D, DP)


@triton.jit(do_not_specialize=["Tq", "T", "size"])
def _keys(
    q, k, v, do, lse, gate, delta, dk, dv, position, sample_start, query_at, query_stop, Tq, T, size, scale, scale2,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    GATE: tl.constexpr, PREC: tl.constexpr, IDENTITY: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    R: tl.constexpr = H // G
    g = tl.program_id(0)
    n0 = tl.program_id(1) * BN
    n = n0 + tl.arange(0, BN)
    inside = n < T
    kt = load_rows(k + g * D, n, inside, G * D, D, DP)
    vt = load_rows(v + g * D, n, inside, G * D, D, DP)
    low = tl.load(query_at + n0)
    high = tl.load(query_at + tl.minimum(n0 + BN - 1 + size, T))
    high = tl.minimum(high, tl.load(query_stop + tl.minimum(n0 + BN, T) - 1))
    tiles = tl.cdiv(high - low, BM)
    acc_k = tl.zeros([BN, DP], tl.float32)
    acc_v = tl.zeros([BN, DP], tl.float32)
    for i in tl.range(0, tiles * R, num_stages=STAGES):
        h = g * R + i // tiles
        rows = low + (i % tiles) * BM + tl.arange(0, BM)
        real = rows < high
        pos = rows
        if not IDENTITY:
            pos = tl.load(position + rows, mask=real, other=-1)
        first = tl.maximum(tl.load(sample_start + rows, mask=real, other=0), pos - size + 1)
        row = h.to(tl.int64) * Tq + rows
        qt = load_rows(q + h * D, rows, real, H * D, D, DP)
        dot = load_rows(do + h * D, rows, real, H * D, D, DP)
        lse_t = tl.load(lse + row, mask=real, other=float("inf"))
        delta_t = tl.load(delta + row, mask=real, other=0.0)
        s = tl.dot(qt, tl.trans(kt), input_precision=PREC)
        p = exp2(s * scale2 - lse_t[:, None])
        p = tl.where((n[None, :] <= pos[:, None]) & (n[None, :] >= first[:, None]), p, 0.0)
        if GATE:
            p = p * tl.load(gate + row, mask=real, other=0.0)[:, None]
        acc_k, acc_v = add_key_gradients(acc_k, acc_v, p, qt, dot, vt, delta_t, PREC)
    store_rows(dk + g * D, acc_k * scale, n, inside, G * D, D, DP)
    store_rows(dv + g * D, acc_v, n, inside, G * D, D, DP)


def window_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    do: Tensor,
    lse: Tensor,
    gate: Tensor | None,
    delta: Tensor,
    blocks: Blocks,
    size: int,
    scale: float,
    dk: Tensor,
    dv: Tensor,
    dq: Tensor | None = None,
) -> Tensor:
    """dq [Tq, H, D]; writes dk and dv [T, G, D] float32, and adds to `dq` where one is given.

    gate, delta: as in compression_backward.
    """
    rows, heads, dim = q.shape
    add = dq is not None
    dq = empty(tuple(q.shape), q) if dq is None else dq
    shape = {
        "H": heads, "G": k.shape[1], "D": dim, "DP": padded(dim), "GATE": gate is not None, "PREC": precision(q.dtype),
    }  # fmt: skip
    inputs = (q, k, v, do, lse, lse if gate is None else gate, delta)
    tile = query_tile(dim, q.dtype)
    if rows:
        launch(_queries, (heads, cdiv(rows, tile.rows)),
            *inputs, dq, blocks.position, blocks.sample_start, rows, size, scale, scale * LOG2E,
            BM=tile.rows, BN=tile.keys, ADD=add, **tile.launch, **shape,
        )  # fmt: skip
    tile = key_tile(dim, q.dtype)
    if len(k):
        launch(_keys, (k.shape[1], cdiv(len(k), tile.keys)),
            *inputs, dk, dv, blocks.position, blocks.sample_start, blocks.query_at, blocks.query_stop,
            rows, len(k), size, scale, scale * LOG2E, BM=tile.rows, BN=tile.keys,
            IDENTITY=blocks.identity, STAGES=tile.stages, num_warps=tile.warps, **shape,
        )  # fmt: skip
    return dq
