"""What the gates do: means by layer, head and branch, and how alike the heads are."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

CONSTANT = 1e-6
"""A gate whose standard deviation over tokens is below this does not vary: it has no correlation."""


class GateSums:
    """One layer's gates over the tokens of all clips, as sums in float64."""

    def __init__(self, branches: Sequence[str], num_heads: int):
        self.branches = list(branches)
        shape = (len(self.branches), num_heads)
        self.tokens = 0
        self.total = torch.zeros(shape, dtype=torch.float64)
        self.products = torch.zeros(*shape, num_heads, dtype=torch.float64)

    def add(self, gates: Tensor) -> None:
        """Add the gates [Tq, H, R] of a clip."""
        rows = gates.detach().permute(2, 1, 0).to("cpu", torch.float64)
        self.tokens += len(gates)
        self.total += rows.sum(2)
        self.products += rows @ rows.transpose(1, 2)

    def mean(self) -> Tensor:
        """[R, H] float64: the mean over tokens."""
        return self.total / self.tokens

    def covariance(self) -> Tensor:
        """[R, H, H] float64 over tokens."""
        mean = self.mean()
        return self.products / self.tokens - mean[:, :, None] * mean[:, None]

    def similarity(self) -> Tensor:
        """[R, H, H] float64: Pearson's correlation of two heads' gates over tokens, NaN where one does not vary."""
        covariance = self.covariance()
        deviation = covariance.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
        deviation = deviation.masked_fill(deviation < CONSTANT, torch.nan)
        return (covariance / (deviation[:, :, None] * deviation[:, None])).clamp(-1, 1)


def gate_rows(layers: dict[int, GateSums]) -> list[dict[str, Any]]:
    """A row for each layer, branch and head: the mean over tokens and the standard deviation."""
    rows = []
    for layer, sums in layers.items():
        deviation = sums.covariance().diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
        for number, branch in enumerate(sums.branches):
            for head, mean in enumerate(sums.mean()[number].tolist()):
                spread = float(deviation[number, head])
                rows.append({"layer": layer, "branch": branch, "head": head, "mean": mean, "deviation": spread})
    return rows


def similarity_rows(layers: dict[int, GateSums]) -> list[dict[str, Any]]:
    """A row for each layer, branch and pair of heads; `correlation` is NaN where a gate does not vary."""
    rows = []
    for layer, sums in layers.items():
        for branch, table in zip(sums.branches, sums.similarity().tolist(), strict=True):
            for head, line in enumerate(table):
                for other in range(head + 1, len(line)):
                    pair = {"head": head, "other": other, "correlation": line[other]}
                    rows.append({"layer": layer, "branch": branch, **pair})
    return rows
