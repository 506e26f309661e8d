"""Pieces of kernels that several ops share."""

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
