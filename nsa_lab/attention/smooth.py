"""How a learned partitioner's confidence reaches the pooled keys and values, and gradient reaches the partitioner."""

import torch
from torch import Tensor


def smooth(pooled_k: Tensor, pooled_v: Tensor, confidence: Tensor) -> tuple[Tensor, Tensor]:
    """Blend each block into those before it by confidence [N] (H-Net's smoothing module, arXiv 2507.07955).

    Pooled keys and values [N, G, D] become k~_b = c_b k_b + (1 - c_b) k~_{b-1}; a confidence of 1 starts anew, so that
    nothing crosses into the next video. Values are multiplied by the confidence straight-through: by 1, with gradient.
    """
    confidence = confidence.to(pooled_k.dtype)
    straight_through = confidence + (1 - confidence).detach()
    return (
        moving_average(pooled_k, confidence),
        moving_average(pooled_v, confidence) * straight_through[:, None, None],
    )


def moving_average(x: Tensor, share: Tensor) -> Tensor:
    """y_b = share_b x_b + (1 - share_b) y_{b-1} over x [N, G, D], in log2 N steps of doubling reach."""
    y, decay, reach = x * share[:, None, None], 1 - share, 1
    while reach < len(x):
        y = torch.cat([y[:reach], y[reach:] + decay[reach:, None, None] * y[:-reach]])
        decay = torch.cat([decay[:reach] * 0, decay[reach:] * decay[:-reach]])
        reach *= 2
    return y
