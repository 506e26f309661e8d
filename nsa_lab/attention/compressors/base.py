"""How the tokens of a block become one key and one value."""

from typing import Any

import torch
from torch import Tensor, nn

from nsa_lab.attention.dims import HeadDims
from nsa_lab.partition import Partition
from nsa_lab.plugin import Plugin


class Compressor(Plugin, nn.Module):
    """Pools keys and values block by block. `longest`: the most tokens a block can hold."""

    def __init__(self, config: Any, dims: HeadDims, longest: int):
        super().__init__()
        self.config = config

    def forward(self, k: Tensor, v: Tensor, partition: Partition) -> tuple[Tensor, Tensor]:
        """k, v [T, G, D] to [N, G, D] each."""
        raise NotImplementedError


def mean_of_blocks(x: Tensor, partition: Partition) -> Tensor:
    """The mean over each block's tokens: x [T, G, D] to [N, G, D], summed in float32 or wider."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if partition.perm is not None:
        wide = wide[partition.perm]
    sums = torch.segment_reduce(wide, "sum", offsets=partition.offsets, axis=0, unsafe=True)
    return (sums / partition.lengths[:, None, None]).to(x.dtype)
