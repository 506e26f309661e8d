"""A gate that is learned but the same for every token."""

import torch
from torch import Tensor, nn

from nsa_lab.attention.gates.base import Gate


class ConstantGate(Gate):
    """sigmoid of one learned number per head and branch. Starts at 0.5."""

    per_branch = ("logit",)

    def build(self, hidden_size: int, columns: int) -> None:
        self.logit = nn.Parameter(torch.empty(self.shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.logit)

    def forward(self, x: Tensor) -> Tensor:
        return (self.logit / self.config.temperature).sigmoid().to(x.dtype).expand(len(x), *self.shape)
