"""A compressor: the mean of each block, scaled by a learned number per channel."""

import torch
from torch import Tensor, nn

from nsa_lab.attention.compressors.base import Compressor, mean_of_blocks
from nsa_lab.attention.dims import HeadDims
from nsa_lab.partition import Partition


class ScaledCompressor(Compressor):
    def __init__(self, config: object, dims: HeadDims, longest: int):
        super().__init__(config, dims, longest)
        self.factor = nn.Parameter(torch.empty(dims.head_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.factor, 0.75)

    def forward(self, k: Tensor, v: Tensor, partition: Partition) -> tuple[Tensor, Tensor]:
        return mean_of_blocks(k, partition) * self.factor, mean_of_blocks(v, partition)
