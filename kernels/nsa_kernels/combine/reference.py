"""The definition of `combine_branches`."""

import torch
from torch import Tensor


def combine_reference(outputs: list[Tensor], gates: Tensor) -> Tensor:
    """sum over r of gates[:, :, r] * outputs[r] (VideoNSA, section 2). [Tq, H, D]."""
    return (torch.stack(outputs, -1) * gates[:, :, None]).sum(-1)
