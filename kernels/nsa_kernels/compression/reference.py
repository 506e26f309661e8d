"""The definitions of `pool_blocks`, `compression_attention` and `compression_lse`, under a dense mask."""

import math

import torch
from torch import Tensor

from nsa_kernels.blocks import Blocks
from nsa_kernels.dense import attend, block_of_key, closed, logits


def pool_reference(x: Tensor, blocks: Blocks) -> Tensor:
    """The mean over each block's tokens (VideoNSA, section 2): x [T, G, D] to [N, G, D]."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    sums = wide.new_zeros((blocks.num_blocks, *x.shape[1:])).index_add(0, block_of_key(blocks), wide)
    return (sums / blocks.offsets.diff()[:, None, None]).to(x.dtype)


def compression_reference(
    q: Tensor, pooled_k: Tensor, pooled_v: Tensor, blocks: Blocks, *, scale: float, block_bias: Tensor | None = None
) -> Tensor:
    """Softmax over the pooled keys of blocks that ended at or before the query (NSA, section 3.3.1). [Tq, H, D]."""
    return attend(q, pooled_k, pooled_v, closed(blocks)[:, None], scale, block_bias)


def compression_lse_reference(
    q: Tensor, pooled_k: Tensor, blocks: Blocks, *, scale: float, block_bias: Tensor | None = None
) -> Tensor:
    """[H, Tq] base-2 log-sum-exp of the logits, +inf where nothing is visible."""
    s = logits(q, pooled_k, scale, block_bias).masked_fill(~closed(blocks)[:, None], -torch.inf)
    lse = s.logsumexp(-1).T / math.log(2)
    return lse.masked_fill(lse == -torch.inf, torch.inf)
