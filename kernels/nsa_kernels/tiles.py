"""Pieces of kernels that several ops share, and the names that all kernels use.

A kernel's file opens with what one program owns, why it is laid out so, and what is given to it beside these, all
contiguous:

  Tq, T, N           queries, keys, blocks
  H, G, R            query heads, heads of keys and values, heads of a group (H / G); h, g: a program's own
  D, DP, HD          head dim; padded to a power of two; half of that, where rows are held as left and right halves
  BM, BN             rows, and keys or blocks, that a program holds at a time; powers of two
  q, do, out, dq     [Tq, H, D] in the inputs' dtype; k, v [T, G, D], pooled pk, pv [N, G, D] likewise
  dk, dv             [T, G, D] float32, for every branch adds to them
  lse                log2 of a row's sum of 2^logit, float32; +inf where it sees nothing, so that exp2(s - lse) is zero
  gate, delta        of a branch, float32, laid out as lse: its gate, and `do` times its output, summed over D
  bias [N]           float32, added to the logits of compression
  scale, scale2      of the logits; times log2(e), for exponentials in base 2
  position to query_stop, offsets, order     the int32 tensors of `Blocks`
  PERMUTED, IDENTITY    keys are read through `order`; every key is a query, so that `position` is not read
  BIAS, GATE, VALUES    whether that is given; where it is not, another tensor stands in its place and is not read
  PREC, STAGES       `input_precision` of products; tiles whose loads are in flight together
"""

import triton
import triton.language as tl

from nsa_kernels.runtime import INTERPRET

_INTERPRET = tl.constexpr(INTERPRET)


@triton.jit
def exp2(x):
    """2^x in one instruction; results below the smallest normal float32 are zero."""
    if _INTERPRET:
        return tl.exp2(x)
    return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def popcount(x):
    """Set bits of 32-bit words, as int32."""
    if _INTERPRET:
        x = x - ((x >> 1) & 0x55555555)
        x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
        x = (x + (x >> 4)) & 0x0F0F0F0F
        x = x + (x >> 8)
        return ((x + (x >> 16)) & 0x3F).to(tl.int32)
    return tl.inline_asm_elementwise("popc.b32 $0, $1;", "=r,r", [x], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def load_rows(x, rows, seen, stride, D: tl.constexpr, DP: tl.constexpr):
    """[rows, DP] of x [*, stride] from its first D columns; rows that are not `seen` are zero."""
    d = tl.arange(0, DP)
    at = x + rows.to(tl.int64)[:, None] * stride + d[None, :]
    if D == DP:
        return tl.load(at, mask=seen[:, None], other=0.0)
    return tl.load(at, mask=seen[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def store_rows(x, value, rows, seen, stride, D: tl.constexpr, DP: tl.constexpr):
    d = tl.arange(0, DP)
    at = x + rows.to(tl.int64)[:, None] * stride + d[None, :]
    tl.store(at, value.to(x.dtype.element_ty), mask=seen[:, None] & (d < D)[None, :])


@triton.jit
def block_logits(q, k, bias, end, first, pos, j, N, scale2, MASK: tl.constexpr, BIAS: tl.constexpr, PREC: tl.constexpr):
    """Base-2 logits of q [BM, DP] against pooled keys k [BN, DP] of blocks j [BN]; -inf where not visible."""
    s = tl.dot(q, tl.trans(k), input_precision=PREC) * scale2
    if BIAS:
        s += tl.load(bias + j, mask=j < N, other=0.0)[None, :] * 1.4426950408889634
    if MASK:
        ends = tl.load(end + j, mask=j < N, other=2**30)
        s = tl.where((ends[None, :] <= pos[:, None]) & (j[None, :] >= first[:, None]), s, float("-inf"))
    return s


@triton.jit
def near_rows(x, rows, stride: tl.constexpr, D: tl.constexpr, DP: tl.constexpr):
    """[rows, DP] of x [*, stride] from its first D columns; every row exists and lies within 2^31 elements of x."""
    d = tl.arange(0, DP)
    at = x + (rows * stride)[:, None] + d[None, :]
    if D == DP:
        return tl.load(at)
    return tl.load(at, mask=(d < D)[None, :], other=0.0)


@triton.jit
def store_near_rows(x, value, rows, seen, stride: tl.constexpr, D: tl.constexpr, DP: tl.constexpr):
    d = tl.arange(0, DP)
    at = x + (rows * stride)[:, None] + d[None, :]
    tl.store(at, value.to(x.dtype.element_ty), mask=seen[:, None] & (d < D)[None, :], eviction_policy="evict_first")


@triton.jit
def online_softmax(m, l, s, MASK: tl.constexpr):
    """Base-2 logits s [BM, BN] join rows with maximum m and sum l: both anew, the probabilities, and the factor for
    what was summed before (FlashAttention-2, algorithm 1). MASK: a row may have seen nothing yet."""
    m_new = tl.maximum(m, tl.max(s, 1))
    shift = m_new
    if MASK:
        shift = tl.where(m_new == float("-inf"), 0.0, m_new)
    p = exp2(s - shift[:, None])
    alpha = exp2(m - shift)
    return m_new, l * alpha + tl.sum(p, 1), p, alpha


@triton.jit
def gradient_rows(
    q, do, lse, delta, gate, h, rows, real, Tq,
    H: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """Queries and output gradients [BM, DP] of head h, and their log-sum-exps, deltas and gates [BM]."""
    qt = load_rows(q + h * D, rows, real, H * D, D, DP)
    dot = load_rows(do + h * D, rows, real, H * D, D, DP)
    row = h.to(tl.int64) * Tq + rows
    lse_t = tl.load(lse + row, mask=real, other=float("inf"))
    delta_t = tl.load(delta + row, mask=real, other=0.0)
    gate_t = tl.full([BM], 1.0, tl.float32)
    if GATE:
        gate_t = tl.load(gate + row, mask=real, other=0.0)
    return qt, dot, lse_t, delta_t, gate_t


@triton.jit
def add_query_gradient(acc, s, k, v, do, lse, gate, delta, PREC: tl.constexpr):
    """acc [BM, DP] plus what base-2 logits s [BM, BN] of one tile of keys give dq (FlashAttention-2, algorithm 2)."""
    p = exp2(s - lse[:, None]) * gate[:, None]
    dp = tl.dot(do, tl.trans(v), input_precision=PREC)
    ds = p * (dp - delta[:, None])
    return tl.dot(ds.to(k.dtype), k, acc, input_precision=PREC)


@triton.jit
def add_key_gradients(acc_k, acc_v, p, q, do, v, delta, PREC: tl.constexpr):
    """acc_k, acc_v [BN, DP] plus what the gated probabilities p [BM, BN] of one tile of queries give to dk and dv."""
    dp = tl.dot(do, tl.trans(v), input_precision=PREC)
    ds = p * (dp - delta[:, None])
    acc_v = tl.dot(tl.trans(p.to(do.dtype)), do, acc_v, input_precision=PREC)
    acc_k = tl.dot(tl.trans(ds.to(q.dtype)), q, acc_k, input_precision=PREC)
    return acc_k, acc_v
