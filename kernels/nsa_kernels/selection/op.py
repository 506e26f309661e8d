"""The public op of `selection`."""

from typing import Any

import torch
from torch import Tensor

from nsa_kernels.blocks import Blocks
from nsa_kernels.checks import check_keys, check_length, check_scale
from nsa_kernels.chosen import fitting
from nsa_kernels.combine.products import products
from nsa_kernels.selection.backward import selection_backward
from nsa_kernels.selection.forward import selection_forward


def selection_attention(
    q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, blocks: Blocks, *, scale: float | None = None, strict: bool = True
) -> Tensor:
    """Each query sees the tokens, at or before its own, of the blocks that its group chose.

    q [Tq, H, D]; k, v [T, G, D]; chosen [Tq, G, n] int32, blocks of the query's sample, none twice, -1 for none;
    [Tq, H, D], zero where nothing is seen. scale is D ** -0.5 by default. Differentiable in q, k, v. What does not fit
    in chosen is refused, for which the host waits for the device, or with strict=False ignored, without waiting.
    Raises ValueError for arguments that do not fit.
    """
    check_keys(q, k, v, blocks)
    chosen = fitting(chosen, q, k.shape[1], blocks, strict)
    check_length(blocks)
    scale = check_scale(scale, q)
    heads = q.contiguous(), k.contiguous(), v.contiguous()
    return _selection(*heads, chosen, blocks.flat(), blocks.sizes, scale)[0]


@torch.library.custom_op("nsa_kernels::selection", mutates_args=())
def _selection(
    q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, blocks: list[Tensor], sizes: list[int], scale: float
) -> tuple[Tensor, Tensor]:
    return selection_forward(q, k, v, chosen, Blocks.join(blocks, sizes), scale)


@torch.library.custom_op("nsa_kernels::selection_backward", mutates_args=())
def _selection_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    chosen: Tensor,
    out: Tensor,
    lse: Tensor,
    do: Tensor,
    blocks: list[Tensor],
    sizes: list[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    do = do.contiguous()
    dk, dv = (torch.zeros_like(x, dtype=torch.float32) for x in (k, v))
    delta = products(do, out).contiguous()
    dq = selection_backward(q, k, v, chosen, do, lse, None, delta, Blocks.join(blocks, sizes), scale, dk, dv)
    return dq, dk.to(k.dtype), dv.to(v.dtype)


@_selection.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, blocks: list[Tensor], sizes: list[int], scale: float
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32)


@_selection_backward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, chosen, blocks, ctx.sizes, ctx.scale = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, chosen, out, lse, *blocks)


def _differentiate(ctx: Any, do: Tensor, _: Any) -> tuple[Any, ...]:
    q, k, v, chosen, out, lse, *blocks = ctx.saved_tensors
    grads = _selection_backward(q, k, v, chosen, out, lse, do, blocks, ctx.sizes, ctx.scale)
    return *grads, None, [None] * len(blocks), None, None


_selection.register_autograd(_differentiate, setup_context=_save)
