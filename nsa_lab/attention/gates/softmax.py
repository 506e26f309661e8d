"""Branches that share one unit of weight."""

from torch import Tensor

from nsa_lab.attention.gates.mlp import MLPGate


class SoftmaxGate(MLPGate):
    """softmax over the branches of W2 gelu(W1 x) / temperature. Starts at 1 / R."""

    def forward(self, x: Tensor) -> Tensor:
        return (self.logits(x).unflatten(-1, self.shape) / self.config.temperature).softmax(-1)
