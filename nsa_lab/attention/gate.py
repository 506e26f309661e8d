"""How much of each branch a token takes: gates [Tq, H, R] from the attention input [Tq, hidden]."""

import torch
from torch import Tensor, nn


class Gate(nn.Module):
    """One gate per head and branch; columns run head by head, within a head in the order of the branches."""

    def __init__(self, hidden_size: int, num_heads: int, num_branches: int, temperature: float, value: float):
        super().__init__()
        self.shape = (num_heads, num_branches)
        self.temperature = temperature
        self.value = value
        self.build(hidden_size, num_heads * num_branches)

    def build(self, hidden_size: int, columns: int) -> None:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """x [Tq, hidden] to gates [Tq, H, R]."""
        raise NotImplementedError


class MLPGate(Gate):
    """sigmoid(W2 gelu(W1 x) / temperature) (VideoNSA, section 2: a two-layer MLP and a sigmoid). Starts at 0.5."""

    def build(self, hidden_size: int, columns: int) -> None:
        self.up = GateLinear(hidden_size, hidden_size, std=0.02)
        self.down = GateLinear(hidden_size, columns, std=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return (self.down(nn.functional.gelu(self.up(x))) / self.temperature).sigmoid().unflatten(-1, self.shape)


class LinearGate(Gate):
    """sigmoid(W x / temperature). Starts at 0.5."""

    def build(self, hidden_size: int, columns: int) -> None:
        self.down = GateLinear(hidden_size, columns, std=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return (self.down(x) / self.temperature).sigmoid().unflatten(-1, self.shape)


class SoftmaxGate(MLPGate):
    """softmax over the branches of W2 gelu(W1 x) / temperature. Starts at 1 / R."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.down(nn.functional.gelu(self.up(x))).unflatten(-1, self.shape)
        return (logits / self.temperature).softmax(-1)


class ConstantGate(Gate):
    """sigmoid of one learned number per head and branch, the same for every token. Starts at 0.5."""

    def build(self, hidden_size: int, columns: int) -> None:
        self.logit = nn.Parameter(torch.empty(self.shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.logit)

    def forward(self, x: Tensor) -> Tensor:
        return (self.logit / self.temperature).sigmoid().to(x.dtype).expand(len(x), *self.shape)


class FixedGate(Gate):
    """`value` for every head and branch, not learned."""

    def build(self, hidden_size: int, columns: int) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return x.new_full((len(x), *self.shape), self.value)


class GateLinear(nn.Linear):
    """A linear layer of a gate, so that the model can tell its initialisation from the backbone's."""

    def __init__(self, in_features: int, out_features: int, std: float):
        self.std = std
        super().__init__(in_features, out_features)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.std) if self.std else nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


GATES: dict[str, type[Gate]] = {
    "mlp": MLPGate,
    "linear": LinearGate,
    "softmax": SoftmaxGate,
    "constant": ConstantGate,
    "fixed": FixedGate,
}
