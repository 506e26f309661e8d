"""A learnable map per token before the mean (NSA's phi, equation 7, for blocks of any length)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nsa_lab.attention.compressors.base import Compressor, mean_of_blocks
from nsa_lab.attention.dims import HeadDims
from nsa_lab.errors import Problem
from nsa_lab.partition import Partition


class MLPCompressor(Compressor):
    @dataclass
    class Config:
        """`mlp_hidden` is the width of the MLP."""

        mlp_hidden: int = 64

    def __init__(self, config: Config, dims: HeadDims, longest: int):
        super().__init__(config, dims, longest)
        self.key = TokenMLP(dims.head_dim, longest, config.mlp_hidden)
        self.value = TokenMLP(dims.head_dim, longest, config.mlp_hidden)

    @classmethod
    def problems(cls, config: Config, design: Any) -> Iterator[Problem]:
        if config.mlp_hidden < 1:
            yield Problem("mlp_hidden", f"{config.mlp_hidden} is not positive")
        if not design.branches.compression.enabled:
            yield Problem(
                "kind", "'mlp' learns only through the compression branch, which is off; use mean or enable the branch"
            )

    def forward(self, k: Tensor, v: Tensor, partition: Partition) -> tuple[Tensor, Tensor]:
        """k, v [T, G, D] to [N, G, D] each."""
        key, value = self.key(k, partition.rank), self.value(v, partition.rank)
        return mean_of_blocks(key, partition), mean_of_blocks(value, partition)


class TokenMLP(nn.Module):
    """A residual MLP on each token and its place in the block; zero at the start, so pooling begins as the mean."""

    def __init__(self, head_dim: int, longest: int, hidden: int):
        super().__init__()
        self.place = nn.Parameter(torch.empty(longest, head_dim))
        self.up = nn.Parameter(torch.empty(hidden, head_dim))
        self.down = nn.Parameter(torch.empty(head_dim, hidden))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.place, std=0.02)
        nn.init.normal_(self.up, std=self.up.shape[1] ** -0.5)
        nn.init.zeros_(self.down)

    def forward(self, x: Tensor, rank: Tensor) -> Tensor:
        """x [T, G, D], rank [T] the place inside the block; [T, G, D]."""
        hidden = nn.functional.gelu((x + self.place[rank][:, None]) @ self.up.T)
        return x + hidden @ self.down.T
