"""A gate: a linear layer cut to [0, 1]."""

from torch import Tensor, nn

from nsa_lab.attention.gates.base import Gate


class HardGate(Gate):
    per_branch = ("map.weight", "map.bias")

    def build(self, hidden_size: int, columns: int) -> None:
        self.map = nn.Linear(hidden_size, columns)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.hardsigmoid(self.map(x) / self.config.temperature).unflatten(-1, self.shape)
