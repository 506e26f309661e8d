"""What one forward says of itself: losses of its parts, and on request what they did."""

from typing import Any

import torch
from torch import Tensor


class Trace:
    """Collects by (layer, name): losses always, anything else only where `wanted` names it.

    Names: `gates` [Tq, H, R]; `gate_means` by branch; `choice` [Tq, G, n] int64, the blocks read; `cost`, a Cost by
    branch; `partition`, of the first layer that uses it; `inputs`, a sparse layer's BranchInputs, recorded last;
    `dense`, a dense layer's DenseInputs; `kept` [V] int64, the tokens that a reducer left of each video. A value that
    comes again (activation checkpointing repeats a layer) replaces the one before.
    """

    def __init__(self, *wanted: str):
        self.wanted = frozenset(wanted)
        self.losses: dict[tuple[int, str], Tensor] = {}
        self.found: dict[tuple[int, str], Any] = {}

    def wants(self, name: str) -> bool:
        """Whether `record` keeps values of this name."""
        return name in self.wanted

    def record(self, layer: int, name: str, value: Any) -> None:
        """Keep `value` where it is wanted."""
        if name in self.wanted:
            self.found[layer, name] = value

    def add_loss(self, layer: int, name: str, value: Tensor | None) -> None:
        """Keep a scalar, already weighted, that is added to the training loss; None is nothing."""
        if value is not None:
            self.losses[layer, name] = value

    def loss(self) -> Tensor | None:
        """The sum of all losses, or None where there is none."""
        return torch.stack(list(self.losses.values())).sum() if self.losses else None

    def of(self, name: str) -> dict[int, Any]:
        """What was recorded under `name`, by layer."""
        return {layer: value for (layer, own), value in sorted(self.found.items()) if own == name}
