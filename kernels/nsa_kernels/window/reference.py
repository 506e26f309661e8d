"""The definition of `window_attention`, under a dense mask."""

import torch
from torch import Tensor

from nsa_kernels.blocks import Blocks
from nsa_kernels.dense import attend


def window_reference(q: Tensor, k: Tensor, v: Tensor, blocks: Blocks, *, size: int, scale: float) -> Tensor:
    """Softmax over the last `size` keys of the sample, the query's own included (NSA, section 3.3.3). [Tq, H, D]."""
    key = torch.arange(len(k), device=k.device)[None]
    position = blocks.position[:, None]
    seen = (key <= position) & (key > position - size) & (key >= blocks.sample_start[:, None])
    return attend(q, k, v, seen[:, None], scale)
