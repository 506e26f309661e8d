"""Sliding-window attention, forward: each query sees the last `size` keys of its sample, its own included.

A program owns BM queries of one head and walks over the keys from its first row's first to its last row's own by BN,
with maximum, sum and output in registers (FlashAttention-2, algorithm 1). Only the keys between `inner` and `outer`
are seen by all rows; the tiles before and after are masked. Heads come first in the grid [H, tiles]: those of a
group run side by side and read the same keys.

Beside the names of `tiles.py`: lse [H, Tq]; size, in keys.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.blocks import Blocks
from nsa_kernels.runtime import LOG2E, cdiv, empty, launch, padded, precision, query_tile
from nsa_kernels.tiles import load_rows, online_softmax, store_rows


@triton.jit(do_not_specialize=["Tq", "size"])
def _forward(
    q, k, v, out, lse, position, sample_start, Tq, size, scale2,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PREC: tl.constexpr,
):  # fmt: skip
    h = tl.program_id(0)
    g = h // (H // G)
    row0 = tl.program_id(1) * BM
    rows = row0 + tl.arange(0, BM)
    real = rows < Tq
    pos = tl.load(position + rows, mask=real, other=-1)
    first = tl.maximum(tl.load(sample_start + rows, mask=real, other=0), pos - size + 1)
    last_row = tl.minimum(row0 + BM, Tq) - 1
    low = tl.load(position + row0)
    high = tl.load(position + last_row) + 1
    begin = tl.maximum(tl.load(sample_start + row0), low - size + 1)
    # Keys every row sees: from the last row's first key to the first row's own.
    inner = tl.maximum(tl.load(sample_start + last_row), high - size)
    inner = begin + tl.cdiv(tl.maximum(inner - begin, 0), BN) * BN
    outer = tl.maximum(inner, begin + tl.maximum(low + 1 - begin, 0) // BN * BN)
    inner = tl.minimum(inner, outer)
    qt = load_rows(q + h * D, rows, real, H * D, D, DP)
    m = tl.full([BM], float("-inf"), tl.float32)
    l = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, DP], tl.float32)
    for n0 in range(begin, inner, BN):
        m, l, acc = _step(qt, k, v, m, l, acc, n0, high, pos, first, g, scale2, True, G, D, DP, BN, PREC)
    for n0 in range(inner, outer, BN):
        m, l, acc = _step(qt, k, v, m, l, acc, n0, high, pos, first, g, scale2, False, G, D, DP, BN, PREC)
    for n0 in range(outer, high, BN):
        m, l, acc = _step(qt, k, v, m, l, acc, n0, high, pos, first, g, scale2, True, G, D, DP, BN, PREC)
    tl.store(lse + h.to(tl.int64) * Tq + rows, m + tl.log2(l), mask=real)
    store_rows(out + h * D, acc / l[:, None], rows, real, H * D, D, DP)


@triton.jit
def _step(
    qt, k, v, m, l, acc, n0, high, pos, first, g, scale2,
    MASK: tl.constexpr, G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    n = n0 + tl.arange(0, BN)
    kt = load_rows(k + g * D, n, n < high, G * D, D, DP)
    s = tl.dot(qt, tl.trans(kt), input_precision=PREC) * scale2
    if MASK:
        s = tl.where((n[None, :] <= pos[:, None]) & (n[None, :] >= first[:, None]), s, float("-inf"))
    m, l, p, alpha = online_softmax(m, l, s, MASK)
    vt = load_rows(v + g * D, n, n < high, G * D, D, DP)
    acc = tl.dot(p.to(vt.dtype), vt, acc * alpha[:, None], input_precision=PREC)
    return m, l, acc


def window_forward(q: Tensor, k: Tensor, v: Tensor, blocks: Blocks, size: int, scale: float) -> tuple[Tensor, Tensor]:
    """Output [Tq, H, D] and base-2 log-sum-exp [H, Tq] float32."""
    rows, heads, dim = q.shape
    out, lse = empty(tuple(q.shape), q), q.new_empty((heads, rows), dtype=torch.float32)
    tile = query_tile(dim, q.dtype)
    if rows:
        launch(_forward, (heads, cdiv(rows, tile.rows)),
            q, k, v, out, lse, blocks.position, blocks.sample_start, rows, size, scale * LOG2E,
            H=heads, G=k.shape[1], D=dim, DP=padded(dim), BM=tile.rows, BN=tile.keys, PREC=precision(q.dtype),
            **tile.launch,
        )  # fmt: skip
    return out, lse
