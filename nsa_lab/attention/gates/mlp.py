"""The paper's gate."""

from torch import Tensor, nn

from nsa_lab.attention.gates.base import Gate, GateLinear


class MLPGate(Gate):
    """sigmoid(W2 gelu(W1 x) / temperature) (VideoNSA, section 2: a two-layer MLP and a sigmoid). Starts at 0.5."""

    per_branch = ("down.weight", "down.bias")

    def build(self, hidden_size: int, columns: int) -> None:
        self.up = GateLinear(hidden_size, hidden_size, std=0.02)
        self.down = GateLinear(hidden_size, columns, std=0.0)

    def logits(self, x: Tensor) -> Tensor:
        """[Tq, H * R], before the temperature."""
        return self.down(nn.functional.gelu(self.up(x)))

    def forward(self, x: Tensor) -> Tensor:
        return (self.logits(x) / self.config.temperature).sigmoid().unflatten(-1, self.shape)
