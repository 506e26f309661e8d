"""The public op of `combine`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nsa_kernels.checks import check, check_device, check_gates
from nsa_kernels.combine.backward import combine_backward
from nsa_kernels.combine.forward import MOST_BRANCHES, combine_forward


def combine_branches(outputs: Sequence[Tensor], gates: Tensor) -> Tensor:
    """sum over r of gates[:, :, r] * outputs[r]: up to three outputs [Tq, H, D], gates [Tq, H, R]; [Tq, H, D].

    Differentiable in all. Raises ValueError for shapes, dtypes or devices that do not fit.
    """
    check(1 <= len(outputs) <= MOST_BRANCHES, f"{len(outputs)} outputs; give 1 to {MOST_BRANCHES}")
    first = outputs[0]
    check_device(first)
    for x in outputs:
        fits = x.shape == first.shape and x.dtype == first.dtype and x.device == first.device
        check(fits and x.ndim == 3, f"outputs must be [Tq, H, D] and alike, not {[list(x.shape) for x in outputs]}")
    check_gates(gates, first, len(outputs))
    return _combine([x.contiguous() for x in outputs], gates.contiguous())


@torch.library.custom_op("nsa_kernels::combine", mutates_args=())
def _combine(outputs: list[Tensor], gates: Tensor) -> Tensor:
    return combine_forward(outputs, gates)


@torch.library.custom_op("nsa_kernels::combine_backward", mutates_args=())
def _combine_backward(outputs: list[Tensor], gates: Tensor, do: Tensor) -> tuple[Tensor, list[Tensor]]:
    dgates, grads = combine_backward(outputs, gates, do.contiguous())
    return dgates.to(gates.dtype), grads


@_combine.register_fake
def _(outputs: list[Tensor], gates: Tensor) -> Tensor:
    return torch.empty_like(outputs[0])


@_combine_backward.register_fake
def _(outputs: list[Tensor], gates: Tensor, do: Tensor) -> tuple[Tensor, list[Tensor]]:
    return torch.empty_like(gates), [torch.empty_like(x) for x in outputs]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    outputs, gates = inputs
    ctx.save_for_backward(gates, *outputs)


def _differentiate(ctx: Any, do: Tensor) -> tuple[list[Tensor], Tensor]:
    gates, *outputs = ctx.saved_tensors
    dgates, grads = _combine_backward(outputs, gates, do)
    return grads, dgates


_combine.register_autograd(_differentiate, setup_context=_save)
