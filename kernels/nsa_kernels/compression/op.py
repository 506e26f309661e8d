"""The public ops of `compression`."""

from typing import Any

import torch
from torch import Tensor

from nsa_kernels.blocks import Blocks
from nsa_kernels.checks import DTYPES, check, check_bias, check_device, check_pooled, check_queries, check_scale
from nsa_kernels.combine.products import products
from nsa_kernels.compression.backward import compression_backward
from nsa_kernels.compression.forward import compression_forward
from nsa_kernels.compression.pooling import pool_backward, pool_forward


def pool_blocks(x: Tensor, blocks: Blocks) -> Tensor:
    """The mean over each block's tokens, summed in float32: x [T, G, D] to [N, G, D]. Differentiable.

    Raises ValueError for an x that does not fit.
    """
    check_device(x)
    fits = x.ndim == 3 and x.shape[0] == blocks.num_keys
    check(fits, f"x must be [{blocks.num_keys}, G, D], not {list(x.shape)}")
    check(x.dtype in DTYPES, f"x is {x.dtype}; the kernels take float32, float16 and bfloat16")
    check(x.device == blocks.end.device, f"blocks are on {blocks.end.device}, x is on {x.device}")
    return _pool(x.contiguous(), blocks.flat(), blocks.sizes)


def compression_attention(
    q: Tensor,
    pooled_k: Tensor,
    pooled_v: Tensor,
    blocks: Blocks,
    *,
    scale: float | None = None,
    block_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Each query sees one pooled key and value of every block of its sample that has ended at or before it.

    q [Tq, H, D]; pooled_k, pooled_v [N, G, D]; block_bias [N] is added to the logits. Returns the output [Tq, H, D],
    zero where nothing is visible, and the base-2 log-sum-exp [H, Tq] float32, +inf there, without gradient. scale is
    D ** -0.5 by default. Differentiable in q, pooled_k, pooled_v. Raises ValueError for arguments that do not fit.
    """
    check_queries(q, blocks)
    check_pooled(q, pooled_k, pooled_v, blocks)
    check_bias(block_bias, blocks)
    scale = check_scale(scale, q)
    inputs = q.contiguous(), pooled_k.contiguous(), pooled_v.contiguous(), as_bias(block_bias)
    return _compression(*inputs, blocks.flat(), blocks.sizes, scale)


@torch.no_grad()
def compression_lse(
    q: Tensor, pooled_k: Tensor, blocks: Blocks, *, scale: float | None = None, block_bias: Tensor | None = None
) -> Tensor:
    """The log-sum-exp [H, Tq] of `compression_attention` alone; without gradient."""
    check_queries(q, blocks)
    check_pooled(q, pooled_k, None, blocks)
    check_bias(block_bias, blocks)
    scale = check_scale(scale, q)
    return _lse(q.contiguous(), pooled_k.contiguous(), as_bias(block_bias), blocks.flat(), blocks.sizes, scale)


def as_bias(block_bias: Tensor | None) -> Tensor | None:
    return None if block_bias is None else block_bias.float().contiguous()


@torch.library.custom_op("nsa_kernels::pool", mutates_args=())
def _pool(x: Tensor, blocks: list[Tensor], sizes: list[int]) -> Tensor:
    return pool_forward(x, Blocks.join(blocks, sizes))


@torch.library.custom_op("nsa_kernels::pool_backward", mutates_args=())
def _pool_backward(dy: Tensor, blocks: list[Tensor], sizes: list[int]) -> Tensor:
    return pool_backward(dy.contiguous(), Blocks.join(blocks, sizes))


@torch.library.custom_op("nsa_kernels::compression", mutates_args=())
def _compression(
    q: Tensor,
    pooled_k: Tensor,
    pooled_v: Tensor,
    bias: Tensor | None,
    blocks: list[Tensor],
    sizes: list[int],
    scale: float,
) -> tuple[Tensor, Tensor]:
    out, lse = compression_forward(q, pooled_k, pooled_v, Blocks.join(blocks, sizes), scale, bias)
    assert out is not None
    return out, lse


@torch.library.custom_op("nsa_kernels::compression_lse", mutates_args=())
def _lse(
    q: Tensor, pooled_k: Tensor, bias: Tensor | None, blocks: list[Tensor], sizes: list[int], scale: float
) -> Tensor:
    return compression_forward(q, pooled_k, None, Blocks.join(blocks, sizes), scale, bias)[1]


@torch.library.custom_op("nsa_kernels::compression_backward", mutates_args=())
def _compression_backward(
    q: Tensor,
    pooled_k: Tensor,
    pooled_v: Tensor,
    out: Tensor,
    lse: Tensor,
    do: Tensor,
    bias: Tensor | None,
    blocks: list[Tensor],
    sizes: list[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    do = do.contiguous()
    delta = products(do, out).T.contiguous()
    return compression_backward(q, pooled_k, pooled_v, do, lse, None, delta, Blocks.join(blocks, sizes), scale, bias)


@_pool.register_fake
def _(x: Tensor, blocks: list[Tensor], sizes: list[int]) -> Tensor:
    return x.new_empty((blocks[1].shape[0], *x.shape[1:]))


@_pool_backward.register_fake
def _(dy: Tensor, blocks: list[Tensor], sizes: list[int]) -> Tensor:
    return dy.new_empty((Blocks.join(blocks, sizes).query_at.shape[0] - 1, *dy.shape[1:]))


@_compression.register_fake
def _(q: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


@_lse.register_fake
def _(q: Tensor, *args: Any) -> Tensor:
    return q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


@_compression_backward.register_fake
def _(q: Tensor, pooled_k: Tensor, pooled_v: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(pooled_k), torch.empty_like(pooled_v)


def _save_pool(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, blocks, ctx.sizes = inputs
    ctx.save_for_backward(*blocks)


def _differentiate_pool(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    blocks = list(ctx.saved_tensors)
    return _pool_backward(dy, blocks, ctx.sizes), [None] * len(blocks), None


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, pooled_k, pooled_v, bias, blocks, ctx.sizes, ctx.scale = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.biased = bias is not None
    ctx.save_for_backward(q, pooled_k, pooled_v, out, lse, *([bias] if ctx.biased else []), *blocks)


def _differentiate(ctx: Any, do: Tensor, _: Any) -> tuple[Any, ...]:
    q, pooled_k, pooled_v, out, lse, *rest = ctx.saved_tensors
    bias, blocks = (rest[0], rest[1:]) if ctx.biased else (None, rest)
    grads = _compression_backward(q, pooled_k, pooled_v, out, lse, do, bias, blocks, ctx.sizes, ctx.scale)
    return *grads, None, [None] * len(blocks), None, None


_pool.register_autograd(_differentiate_pool, setup_context=_save_pool)
_compression.register_autograd(_differentiate, setup_context=_save)
