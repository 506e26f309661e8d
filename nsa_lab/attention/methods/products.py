"""Products of heads in float32 or wider, of which bfloat16 loses nothing."""

import torch
from torch import Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """float32, or `dtype` where that is wider."""
    return torch.promote_types(dtype, torch.float32)


def wide_product(a: Tensor, b: Tensor) -> Tensor:
    """a [N, n, d] @ b [N, d, m], summed in float32 or wider; of low precision on a GPU by its fast units."""
    if a.is_cuda and a.dtype != wide(a.dtype):
        return torch.bmm(a, b, out_dtype=torch.float32)
    return a.to(wide(a.dtype)) @ b.to(wide(b.dtype))
