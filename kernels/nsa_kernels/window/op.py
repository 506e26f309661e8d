"""The public op of `window`."""

from typing import Any

import torch
from torch import Tensor

from nsa_kernels.blocks import Blocks
from nsa_kernels.checks import check_keys, check_scale, check_window
from nsa_kernels.combine.products import products
from nsa_kernels.window.backward import window_backward
from nsa_kernels.window.forward import window_forward


def window_attention(
    q: Tensor, k: Tensor, v: Tensor, blocks: Blocks, *, size: int, scale: float | None = None
) -> Tensor:
    """Each query sees the last `size` keys of its sample, its own included; size >= T is dense causal attention.

    q [Tq, H, D]; k, v [T, G, D]; [Tq, H, D]. scale is D ** -0.5 by default. Differentiable in q, k, v.
    Raises ValueError for arguments that do not fit.
    """
    check_keys(q, k, v, blocks)
    size = check_window(size)
    scale = check_scale(scale, q)
    return _window(q.contiguous(), k.contiguous(), v.contiguous(), blocks.flat(), blocks.sizes, size, scale)[0]


@torch.library.custom_op("nsa_kernels::window", mutates_args=())
def _window(
    q: Tensor, k: Tensor, v: Tensor, blocks: list[Tensor], sizes: list[int], size: int, scale: float
) -> tuple[Tensor, Tensor]:
    return window_forward(q, k, v, Blocks.join(blocks, sizes), size, scale)


@torch.library.custom_op("nsa_kernels::window_backward", mutates_args=())
def _window_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    do: Tensor,
    blocks: list[Tensor],
    sizes: list[int],
    size: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    do = do.contiguous()
    delta = products(do, out).T.contiguous()
    dk, dv = (torch.empty_like(x, dtype=torch.float32) for x in (k, v))
    dq = window_backward(q, k, v, do, lse, None, delta, Blocks.join(blocks, sizes), size, scale, dk, dv)
    return dq, dk.to(k.dtype), dv.to(v.dtype)


@_window.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, blocks: list[Tensor], sizes: list[int], size: int, scale: float
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


@_window_backward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, blocks, ctx.sizes, ctx.size, ctx.scale = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, out, lse, *blocks)


def _differentiate(ctx: Any, do: Tensor, _: Any) -> tuple[Any, ...]:
    q, k, v, out, lse, *blocks = ctx.saved_tensors
    grads = _window_backward(q, k, v, out, lse, do, blocks, ctx.sizes, ctx.size, ctx.scale)
    return *grads, [None] * len(blocks), None, None, None


_window.register_autograd(_differentiate, setup_context=_save)
