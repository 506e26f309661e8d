"""Mixed precision, as PyTorch's own attention takes it."""

import torch
from torch import Tensor


def autocast(*heads: Tensor) -> tuple[Tensor, ...]:
    """Under torch.autocast all in its dtype, otherwise as they are."""
    device = heads[0].device.type
    if not torch.is_autocast_enabled(device):
        return heads
    return tuple(x.to(torch.get_autocast_dtype(device)) for x in heads)
