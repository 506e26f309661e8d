"""The definition of `selection_attention`, under a dense mask."""

import torch
from torch import Tensor

from nsa_kernels.blocks import Blocks
from nsa_kernels.dense import attend, block_of_key


def selection_reference(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, blocks: Blocks, *, scale: float) -> Tensor:
    """Softmax over the tokens of chosen blocks [Tq, G, n] that stand at or before the query (NSA, section 3.3.2)."""
    rows, groups = chosen.shape[:2]
    mark = torch.zeros((rows, groups, blocks.num_blocks + 1), dtype=torch.bool, device=q.device)
    mark.scatter_(2, torch.where(chosen < 0, blocks.num_blocks, chosen).long(), True)
    causal = torch.arange(len(k), device=k.device)[None] <= blocks.position[:, None]
    seen = mark[:, :, block_of_key(blocks)] & causal[:, None]
    return attend(q, k, v, seen.repeat_interleave(q.shape[1] // groups, 1), scale)
