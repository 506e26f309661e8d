"""Gradients of the gates, and of the branches where they are wanted apart.

A program owns ROWS (query, head) rows, as in the forward, and reads their `do` once for all branches.

a, b, c, da, db, dc, do [count, D], of which R are branches; gates [count, R]; dgates [count, R] float32: with one
branch, the `delta` of its backward. WRITE: the branches' gradients are written too.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.combine.forward import ROWS, three
from nsa_kernels.runtime import cdiv, empty, launch, padded


@triton.jit
def _branch(x, dx, do, gates, dgates, row, at, seen, count, r, R: tl.constexpr, WRITE: tl.constexpr):
    here = row < count
    tl.store(dgates + row * R + r, tl.sum(tl.load(x + at, mask=seen, other=0.0).to(tl.float32) * do, 1), mask=here)
    if WRITE:
        gate = tl.load(gates + row * R + r, mask=here, other=0.0).to(tl.float32)
        tl.store(dx + at, (do * gate[:, None]).to(dx.dtype.element_ty), mask=seen)


@triton.jit(do_not_specialize=["count"])
def _backward(
    a, b, c, da, db, dc, do, gates, dgates, count,
    R: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr, WRITE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, DP)
    seen = (row < count)[:, None] & (d < D)[None, :]
    at = row[:, None] * D + d[None, :]
    do_t = tl.load(do + at, mask=seen, other=0.0).to(tl.float32)
    _branch(a, da, do_t, gates, dgates, row, at, seen, count, 0, R, WRITE)
    if R > 1:
        _branch(b, db, do_t, gates, dgates, row, at, seen, count, 1, R, WRITE)
    if R > 2:
        _branch(c, dc, do_t, gates, dgates, row, at, seen, count, 2, R, WRITE)


def combine_backward(
    outputs: list[Tensor], gates: Tensor, do: Tensor, of_outputs: bool = True
) -> tuple[Tensor, list[Tensor]]:
    """d gates [Tq, H, R] float32, and d outputs, R times [Tq, H, D], or none of them."""
    dgates = torch.empty(gates.shape, dtype=torch.float32, device=gates.device)
    grads = [empty(tuple(x.shape), x) for x in outputs] if of_outputs else []
    count, dim = do.shape[0] * do.shape[1], do.shape[2]
    if count:
        launch(_backward, (cdiv(count, ROWS),),
            *three(outputs), *three(grads or outputs), do, gates, dgates, count,
            R=len(outputs), D=dim, DP=padded(dim), ROWS=ROWS, WRITE=of_outputs, num_warps=4,
        )  # fmt: skip
    return dgates, grads
