"""Compression attention, forward: queries against one pooled key per closed block, with the log-sum-exp.

A program owns BM queries of one head and walks over the pooled keys by BN, with maximum, sum and output in registers
(FlashAttention-2, algorithm 1). Programs of one head stand side by side in the grid [tiles, H], so that they share
its keys in L2. Queries ascend, so that up to a block `full` every row sees every block: most of the walk is not
masked.

Beside the names of `tiles.py`: lse [H, Tq], heads first, for a program reads and writes rows of one head. Without
VALUES the log-sum-exp alone is made, which the top-k needs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.blocks import Blocks
from nsa_kernels.runtime import LOG2E, cdiv, empty, launch, padded, precision, query_tile
from nsa_kernels.tiles import block_logits, load_rows, online_softmax, store_rows


@triton.jit
def blocks_of_rows(position, first_block, last_block, closed_below, Tq, BM: tl.constexpr, BN: tl.constexpr):
    """This program's rows [BM]: their numbers, which exist, where they stand, their samples' first blocks; and the
    blocks they see: from `begin`, up to `full` all rows every one, none from `stop` on."""
    row0 = tl.program_id(0) * BM
    rows = row0 + tl.arange(0, BM)
    real = rows < Tq
    pos = tl.load(position + rows, mask=real, other=-1)
    first = tl.load(first_block + rows, mask=real, other=0)
    last_row = tl.minimum(row0 + BM, Tq) - 1
    begin = tl.load(first_block + row0)
    stop = tl.load(last_block + last_row) + 1
    one_sample = tl.load(first_block + last_row) == begin
    closed = tl.load(closed_below + row0)
    full = tl.where(one_sample, begin + (closed - begin) // BN * BN, begin)
    return rows, real, pos, first, begin, full, stop


@triton.jit
def _step(
    qt, pk, pv, bias, end, first, pos, m, l, acc, j0, g, N, scale2,
    MASK: tl.constexpr, G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr,
    BIAS: tl.constexpr, VALUES: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    j = j0 + tl.arange(0, BN)
    kt = load_rows(pk + g * D, j, j < N, G * D, D, DP)
    s = block_logits(qt, kt, bias, end, first, pos, j, N, scale2, MASK, BIAS, PREC)
    m, l, p, alpha = online_softmax(m, l, s, MASK or BIAS)
    if VALUES:
        vt = load_rows(pv + g * D, j, j < N, G * D, D, DP)
        acc = tl.dot(p.to(vt.dtype), vt, acc * alpha[:, None], input_precision=PREC)
    return m, l, acc


@triton.jit(do_not_specialize=["Tq", "N"])
def _forward(
    q, pk, pv, bias, out, lse, position, first_block, last_block, closed_below, end, Tq, N, scale2,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BIAS: tl.constexpr, VALUES: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    h = tl.program_id(1)
    rows, real, pos, first, begin, full, stop = blocks_of_rows(
        position, first_block, last_block, closed_below, Tq, BM, BN
    )
    g = h // (H // G)
    qt = load_rows(q + h * D, rows, real, H * D, D, DP)
    m = tl.full([BM], float("-inf"), tl.float32)
    l = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, DP], tl.float32)
    for j0 in range(begin, full, BN):
        m, l, acc = _step(
            qt, pk, pv, bias, end, first, pos, m, l, acc, j0, g, N, scale2, False, G, D, DP, BN, BIAS, VALUES, PREC
        )
    for j0 in range(full, stop, BN):
        m, l, acc = _step(
            qt, pk, pv, bias, end, first, pos, m, l, acc, j0, g, N, scale2, True, G, D, DP, BN, BIAS, VALUES, PREC
        )
    nothing = l == 0
    # A row that sees nothing gets +inf, so that its probabilities exp2(s - lse) are zero wherever they are recomputed.
    tl.store(lse + h.to(tl.int64) * Tq + rows, tl.where(nothing, float("inf"), m + tl.log2(l)), mask=real)
    if VALUES:
        store_rows(out + h * D, acc / tl.where(nothing, 1.0, l)[:, None], rows, real, H * D, D, DP)


def compression_forward(
    q: Tensor,
    pooled_k: Tensor,
    pooled_v: Tensor | None,
    blocks: Blocks,
    scale: float,
    bias: Tensor | None = None,
) -> tuple[Tensor | None, Tensor]:
    """Output [Tq, H, D] (None without values) and base-2 log-sum-exp [H, Tq] float32, +inf where nothing is visible."""
    rows, heads, dim = q.shape
    out = None if pooled_v is None else empty(tuple(q.shape), q)
    lse = q.new_empty((heads, rows), dtype=torch.float32)
    tile = query_tile(dim, q.dtype)
    if rows:
        launch(_forward, (cdiv(rows, tile.rows), heads),
            q, pooled_k, q if pooled_v is None else pooled_v, q if bias is None else bias, q if out is None else out,
            lse, blocks.position, blocks.first_block, blocks.last_block, blocks.closed_below, blocks.end,
            rows, blocks.num_blocks, scale * LOG2E,
            H=heads, G=pooled_k.shape[1], D=dim, DP=padded(dim), BM=tile.rows, BN=tile.keys,
            BIAS=bias is not None, VALUES=pooled_v is not None, PREC=precision(q.dtype),
            **tile.launch,
        )  # fmt: skip
    return out, lse
