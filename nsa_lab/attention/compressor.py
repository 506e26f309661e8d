"""How the tokens of a block become one key and one value."""

import torch
from torch import Tensor, nn

from nsa_lab.partition import Partition


def mean_of_blocks(x: Tensor, partition: Partition) -> Tensor:
    """The mean over each block's tokens: x [T, G, D] to [N, G, D], summed in float32 or wider."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if partition.perm is not None:
        wide = wide[partition.perm]
    sums = torch.segment_reduce(wide, "sum", offsets=partition.offsets, axis=0, unsafe=True)
    return (sums / partition.lengths[:, None, None]).to(x.dtype)


class MeanCompressor(nn.Module):
    """The plain average (VideoNSA, section 2)."""

    def __init__(self, head_dim: int, cap: int, hidden: int):
        super().__init__()

    def forward(self, k: Tensor, v: Tensor, partition: Partition) -> tuple[Tensor, Tensor]:
        """k, v [T, G, D] to [N, G, D] each."""
        return mean_of_blocks(k, partition), mean_of_blocks(v, partition)


class TokenMLP(nn.Module):
    """A residual MLP on each token and its place in the block; zero at the start, so pooling begins as the mean."""

    def __init__(self, head_dim: int, cap: int, hidden: int):
        super().__init__()
        self.place = nn.Parameter(torch.empty(cap, head_dim))
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


class MLPCompressor(nn.Module):
    """A learnable map per token before the mean (NSA's phi, equation 7, for blocks of any length up to `cap`)."""

    def __init__(self, head_dim: int, cap: int, hidden: int):
        super().__init__()
        self.key = TokenMLP(head_dim, cap, hidden)
        self.value = TokenMLP(head_dim, cap, hidden)

    def forward(self, k: Tensor, v: Tensor, partition: Partition) -> tuple[Tensor, Tensor]:
        """k, v [T, G, D] to [N, G, D] each."""
        key, value = self.key(k, partition.rank), self.value(v, partition.rank)
        return mean_of_blocks(key, partition), mean_of_blocks(value, partition)


COMPRESSORS: dict[str, type[MeanCompressor] | type[MLPCompressor]] = {
    "mean": MeanCompressor,
    "mlp": MLPCompressor,
}
