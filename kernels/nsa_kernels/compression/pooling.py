"""The mean over the tokens of each block, of any lengths, and its gradient.

A program owns one block and CP of the C = G * D columns, and walks over the block's tokens by BN, with a sum in
float32: a block's length is known to its program alone, and there are blocks enough for every SM.

x, dx [T, C]; out, dy [N, C]; the rest as in `tiles.py`.
"""

import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.blocks import Blocks
from nsa_kernels.runtime import empty, launch, padded


@triton.jit
def _pool(
    x, out, offsets, order, C: tl.constexpr, CP: tl.constexpr, BN: tl.constexpr, PERMUTED: tl.constexpr
):  # fmt: skip
    block = tl.program_id(0)
    c = tl.program_id(1) * CP + tl.arange(0, CP)
    begin = tl.load(offsets + block)
    stop = tl.load(offsets + block + 1)
    total = tl.zeros([CP], tl.float32)
    for n0 in range(begin, stop, BN):
        n = n0 + tl.arange(0, BN)
        key = n
        if PERMUTED:
            key = tl.load(order + n, mask=n < stop, other=0)
        at = x + key.to(tl.int64)[:, None] * C + c[None, :]
        total += tl.sum(tl.load(at, mask=(n < stop)[:, None] & (c < C)[None, :], other=0.0).to(tl.float32), 0)
    mean = total / (stop - begin).to(tl.float32)
    tl.store(out + block.to(tl.int64) * C + c, mean.to(out.dtype.element_ty), mask=c < C)


@triton.jit
def _spread(
    dy, dx, offsets, order, C: tl.constexpr, CP: tl.constexpr, BN: tl.constexpr, PERMUTED: tl.constexpr
):  # fmt: skip
    block = tl.program_id(0)
    c = tl.program_id(1) * CP + tl.arange(0, CP)
    begin = tl.load(offsets + block)
    stop = tl.load(offsets + block + 1)
    share = tl.load(dy + block.to(tl.int64) * C + c, mask=c < C, other=0.0).to(tl.float32)
    share = (share / (stop - begin).to(tl.float32)).to(dx.dtype.element_ty)
    for n0 in range(begin, stop, BN):
        n = n0 + tl.arange(0, BN)
        key = n
        if PERMUTED:
            key = tl.load(order + n, mask=n < stop, other=0)
        at = dx + key.to(tl.int64)[:, None] * C + c[None, :]
        tl.store(at, tl.broadcast_to(share[None, :], (BN, CP)), mask=(n < stop)[:, None] & (c < C)[None, :])


def pool_forward(x: Tensor, blocks: Blocks) -> Tensor:
    """Means [N, G, D] of x [T, G, D], summed in float32."""
    out = empty((blocks.num_blocks, *x.shape[1:]), x)
    _launch(_pool, x, out, blocks)
    return out


def pool_backward(dy: Tensor, blocks: Blocks) -> Tensor:
    """dx [T, G, D] of dy [N, G, D]."""
    dx = empty((blocks.num_keys, *dy.shape[1:]), dy)
    _launch(_spread, dy, dx, blocks)
    return dx


def _launch(kernel: triton.JITFunction, source: Tensor, target: Tensor, blocks: Blocks) -> None:
    columns = source.shape[1] * source.shape[2]
    width = min(256, padded(columns))
    if blocks.num_blocks:
        launch(kernel, (blocks.num_blocks, triton.cdiv(columns, width)),
            source, target, blocks.offsets, blocks.offsets if blocks.order is None else blocks.order,
            C=columns, CP=width, BN=min(32, padded(blocks.longest, 1)), PERMUTED=blocks.order is not None, num_warps=4,
        )  # fmt: skip
