"""A gate that is not learned."""

from dataclasses import dataclass

from torch import Tensor

from nsa_lab.attention.gates.base import Gate


class FixedGate(Gate):
    """`value` for every head and branch."""

    @dataclass
    class Config(Gate.Config):
        """The weight of every branch."""

        value: float = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return x.new_full((len(x), *self.shape), self.config.value)
