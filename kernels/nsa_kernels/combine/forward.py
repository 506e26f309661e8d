"""Gates applied and branches summed in one pass.

A program owns ROWS (query, head) rows, of `count` in all, and reads each branch's once: there is nothing to do but
to read and write, and whole rows are read side by side.

a, b, c, out [count, D] in the inputs' dtype, of which R are branches and the others not read; gates [count, R].
"""

import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.runtime import cdiv, empty, launch, padded

ROWS = 32
MOST_BRANCHES = 3


@triton.jit(do_not_specialize=["count"])
def _forward(
    a, b, c, gates, out, count, R: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, DP)
    seen = (row < count)[:, None] & (d < D)[None, :]
    at = row[:, None] * D + d[None, :]
    total = tl.load(a + at, mask=seen, other=0.0).to(tl.float32)
    total *= tl.load(gates + row * R, mask=row < count, other=0.0).to(tl.float32)[:, None]
    if R > 1:
        gate = tl.load(gates + row * R + 1, mask=row < count, other=0.0).to(tl.float32)
        total += tl.load(b + at, mask=seen, other=0.0).to(tl.float32) * gate[:, None]
    if R > 2:
        gate = tl.load(gates + row * R + 2, mask=row < count, other=0.0).to(tl.float32)
        total += tl.load(c + at, mask=seen, other=0.0).to(tl.float32) * gate[:, None]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=seen)


def combine_forward(outputs: list[Tensor], gates: Tensor) -> Tensor:
    """sum of gates[:, :, r] * outputs[r]: R outputs [Tq, H, D], gates [Tq, H, R] contiguous; [Tq, H, D]."""
    first = outputs[0]
    out = empty(tuple(first.shape), first)
    count, dim = first.shape[0] * first.shape[1], first.shape[2]
    if count:
        launch(_forward, (cdiv(count, ROWS),),
            *three(outputs), gates, out, count,
            R=len(outputs), D=dim, DP=padded(dim), ROWS=ROWS, num_warps=4,
        )  # fmt: skip
    return out


def three(outputs: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Three tensors for a kernel that reads only as many as there are."""
    return outputs[0], outputs[min(1, len(outputs) - 1)], outputs[min(2, len(outputs) - 1)]
