"""The plain average (VideoNSA, section 2)."""

from torch import Tensor

from nsa_lab.attention.compressors.base import Compressor, mean_of_blocks
from nsa_lab.partition import Partition


class MeanCompressor(Compressor):
    def forward(self, k: Tensor, v: Tensor, partition: Partition) -> tuple[Tensor, Tensor]:
        """k, v [T, G, D] to [N, G, D] each."""
        return mean_of_blocks(k, partition), mean_of_blocks(v, partition)
