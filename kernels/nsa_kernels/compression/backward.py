"""Compression attention, backward: gradients of the queries, and of the pooled keys and values.

`_queries`: laid out as the forward. `_pooled`: a program owns BN pooled keys and values of one group and walks over
a part of its heads and of the queries that see them, both gradients in registers; grid [tiles, G, parts]. Pooled
keys are few, 512 for 32,768 tokens, so that a program for all heads and queries of each tile would leave most SMs
idle. The parts are added up afterwards, in order, as atomics would not be.

Beside the names of `tiles.py`:
  lse, gate, delta [H, Tq]
  dk, dv [parts, N, G, D] float32         part = head part * query_parts + query part; dk not yet scaled
  head_parts, query_parts                 how many parts the group's heads and the queries are cut into
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.blocks import Blocks
from nsa_kernels.compression.forward import blocks_of_rows
from nsa_kernels.runtime import INTERPRET, LOG2E, cdiv, empty, key_tile, launch, padded, precision, query_tile
from nsa_kernels.tiles import (
    add_key_gradients,
    add_query_gradient,
    block_logits,
    exp2,
    gradient_rows,
    load_rows,
    store_rows,
)

PROGRAMS = 1024
"""How many programs the gradient of the pooled keys is cut into, about: eight for each SM of an H200."""


@triton.jit
def _step(
    acc, qt, dot, lse_t, delta_t, gate_t, pk, pv, bias, end, first, pos, j0, g, N, scale2,
    MASK: tl.constexpr, G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr,
    BIAS: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    j = j0 + tl.arange(0, BN)
    kt = load_rows(pk + g * D, j, j < N, G * D, D, DP)
    vt = load_rows(pv + g * D, j, j < N, G * D, D, DP)
    s = block_logits(qt, kt, bias, end, first, pos, j, N, scale2, MASK, BIAS, PREC)
    return add_query_gradient(acc, s, kt, vt, dot, lse_t, gate_t, delta_t, PREC)


@triton.jit(do_not_specialize=["Tq", "N"])
def _queries(
    q, pk, pv, bias, do, lse, gate, delta, dq, position, first_block, last_block, closed_below, end,
    Tq, N, scale, scale2,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BIAS: tl.constexpr, GATE: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    h = tl.program_id(1)
    g = h // (H // G)
    rows, real, pos, first, begin, full, stop = blocks_of_rows(
        position, first_block, last_block, closed_below, Tq, BM, BN
    )
    qt, dot, lse_t, delta_t, gate_t = gradient_rows(q, do, lse, delta, gate, h, rows, real, Tq, H, D, DP, BM, GATE)
    acc = tl.zeros([BM, DP], tl.float32)
    for j0 in range(begin, full, BN):
        acc = _step(
            acc, qt, dot, lse_t, delta_t, gate_t, pk, pv, bias, end, first, pos, j0, g, N, scale2,
            False, G, D, DP, BN, BIAS, PREC,
        )  # fmt: skip
    for j0 in range(full, stop, BN):
        acc = _step(
            acc, qt, dot, lse_t, delta_t, gate_t, pk, pv, bias, end, first, pos, j0, g, N, scale2,
            True, G, D, DP, BN, BIAS, PREC,
        )  # fmt: skip
    store_rows(dq + h * D, acc * scale, rows, real, H * D, D, DP)


@triton.jit(do_not_specialize=["Tq", "N", "head_parts", "query_parts"])
def _pooled(
    q, pk, pv, bias, do, lse, gate, delta, dk, dv, position, first_block, end, query_at, query_stop,
    Tq, N, scale2, head_parts, query_parts,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BIAS: tl.constexpr, GATE: tl.constexpr, PREC: tl.constexpr, IDENTITY: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Part of the gradient of BN pooled keys and values of one group, over some of its heads and queries."""
    R: tl.constexpr = H // G
    g = tl.program_id(1)
    part = tl.program_id(2)
    j0 = tl.program_id(0) * BN
    j = j0 + tl.arange(0, BN)
    here = j < N
    kt = load_rows(pk + g * D, j, here, G * D, D, DP)
    vt = load_rows(pv + g * D, j, here, G * D, D, DP)
    ends = tl.load(end + j, mask=here, other=2**30)
    low = tl.load(query_at + tl.min(ends))
    high = tl.load(query_stop + tl.load(end + tl.minimum(j0 + BN, N) - 1))
    head_part = part // query_parts
    query_part = part % query_parts
    share = tl.cdiv(tl.cdiv(high - low, BM), query_parts) * BM
    low = low + query_part * share
    high = tl.minimum(high, low + share)
    if BIAS:
        bias_t = tl.load(bias + j, mask=here, other=0.0) * 1.4426950408889634
    acc_k = tl.zeros([BN, DP], tl.float32)
    acc_v = tl.zeros([BN, DP], tl.float32)
    tiles = tl.cdiv(tl.maximum(high - low, 0), BM)
    heads = R // head_parts
    for i in tl.range(0, tiles * heads, num_stages=STAGES):
        h = g * R + head_part * heads + i // tiles
        rows = low + (i % tiles) * BM + tl.arange(0, BM)
        real = rows < high
        pos = rows
        if not IDENTITY:
            pos = tl.load(position + rows, mask=real, other=-1)
        first = tl.load(first_block + rows, mask=real, other=0)
        row = h.to(tl.int64) * Tq + rows
        qt = load_rows(q + h * D, rows, real, H * D, D, DP)
        dot = load_rows(do + h * D, rows, real, H * D, D, DP)
        lse_t = tl.load(lse + row, mask=real, other=float("inf"))
        delta_t = tl.load(delta + row, mask=real, other=0.0)
        s = tl.dot(qt, tl.trans(kt), input_precision=PREC) * scale2
        if BIAS:
            s += bias_t[None, :]
        p = exp2(s - lse_t[:, None])
        p = tl.where((ends[None, :] <= pos[:, None]) & (j[None, :] >= first[:, None]), p, 0.0)
        if GATE:
            p = p * tl.load(gate + row, mask=real, other=0.0)[:, None]
        acc_k, acc_v = add_key_gradients(acc_k, acc_v, p, qt, dot, vt, delta_t, PREC)
    at = part.to(tl.int64) * N * G * D + g * D
    store_rows(dk + at, acc_k, j, here, G * D, D, DP)
    store_rows(dv + at, acc_v, j, here, G * D, D, DP)


def _parts(tiles: int, groups: int, heads: int) -> tuple[int, int]:
    """How many parts the heads and the queries are cut into, so that there is work for every SM."""
    if INTERPRET:
        return 1, 2
    head_parts = heads // groups if tiles * groups < PROGRAMS else 1
    return head_parts, max(1, min(16, PROGRAMS // max(1, tiles * groups * head_parts)))


def compression_backward(
    q: Tensor,
    pooled_k: Tensor,
    pooled_v: Tensor,
    do: Tensor,
    lse: Tensor,
    gate: Tensor | None,
    delta: Tensor,
    blocks: Blocks,
    scale: float,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq [Tq, H, D], d pooled_k and d pooled_v [N, G, D], of an output that is multiplied by `gate`.

    lse, delta, gate [H, Tq] float32; delta is the product of `do` and the output before the gate, summed over D.
    """
    rows, heads, dim = q.shape
    count, groups, _ = pooled_k.shape
    if not rows or not count:
        return torch.zeros_like(q), torch.zeros_like(pooled_k), torch.zeros_like(pooled_v)
    dq = empty(tuple(q.shape), q)
    shape = {
        "H": heads, "G": groups, "D": dim, "DP": padded(dim), "BIAS": bias is not None, "GATE": gate is not None,
        "PREC": precision(q.dtype),
    }  # fmt: skip
    inputs = (q, pooled_k, pooled_v, q if bias is None else bias, do, lse, lse if gate is None else gate, delta)
    tile = query_tile(dim, q.dtype)
    launch(_queries, (cdiv(rows, tile.rows), heads),
        *inputs, dq, blocks.position, blocks.first_block, blocks.last_block, blocks.closed_below, blocks.end,
        rows, count, scale, scale * LOG2E, BM=tile.rows, BN=tile.keys, **tile.launch, **shape,
    )  # fmt: skip
    tile = key_tile(dim, q.dtype)
    tiles = cdiv(count, tile.keys)
    head_parts, query_parts = _parts(tiles, groups, heads)
    parts = head_parts * query_parts
    dk, dv = (empty((parts, count, groups, dim), q, torch.float32) for _ in range(2))
    launch(_pooled, (tiles, groups, parts),
        *inputs, dk, dv, blocks.position, blocks.first_block, blocks.end, blocks.query_at, blocks.query_stop,
        rows, count, scale * LOG2E, head_parts, query_parts,
        BM=tile.rows, BN=tile.keys, IDENTITY=blocks.identity, STAGES=tile.stages, num_warps=tile.warps, **shape,
    )  # fmt: skip
    return dq, (dk.sum(0) * scale).to(pooled_k.dtype), dv.sum(0).to(pooled_v.dtype)
