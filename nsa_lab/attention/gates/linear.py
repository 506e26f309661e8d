"""A gate of one linear layer."""

from torch import Tensor

from nsa_lab.attention.gates.base import Gate, GateLinear


class LinearGate(Gate):
    """sigmoid(W x / temperature). Starts at 0.5."""

    per_branch = ("down.weight", "down.bias")

    def build(self, hidden_size: int, columns: int) -> None:
        self.down = GateLinear(hidden_size, columns, std=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return (self.down(x) / self.config.temperature).sigmoid().unflatten(-1, self.shape)
