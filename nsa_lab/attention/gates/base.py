"""How much of each branch a token takes: gates [Tq, H, R] from the attention input [Tq, hidden]."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from nsa_lab.attention.dims import HeadDims
from nsa_lab.errors import Problem
from nsa_lab.plugin import Plugin


class Gate(Plugin, nn.Module):
    """One gate per head and branch; columns run head by head, within a head in the order of the branches.

    per_branch: names of the parameters that hold those columns, [H * R, ...] or [H, R].
    """

    per_branch: ClassVar[tuple[str, ...]] = ()

    @dataclass
    class Config:
        """Learned gates divide their logits by `temperature`."""

        temperature: float = 1.0

    def __init__(self, config: Any, dims: HeadDims, num_branches: int):
        super().__init__()
        self.config = config
        self.shape = (dims.num_heads, num_branches)
        self.build(dims.hidden_size, dims.num_heads * num_branches)

    @classmethod
    def problems(cls, config: Any, design: Any) -> Iterator[Problem]:
        if config.temperature <= 0:
            yield Problem("temperature", f"{config.temperature} is not positive")

    def build(self, hidden_size: int, columns: int) -> None:
        """Make the parameters, if there are any."""

    def forward(self, x: Tensor) -> Tensor:
        """x [Tq, hidden] to gates [Tq, H, R]."""
        raise NotImplementedError


class GateLinear(nn.Linear):
    """A linear layer of a gate: normal weights of a small deviation, or zeros."""

    def __init__(self, in_features: int, out_features: int, std: float):
        self.std = std
        super().__init__(in_features, out_features)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.std) if self.std else nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
