"""Token reducers: which video tokens go on through the decoder."""

from typing import Any

from torch import Tensor, nn

from nsa_lab.plugin import Plugin


class Reducer(Plugin, nn.Module):
    """May drop or merge video tokens after the vision tower and after each layer; this one keeps all.

    A hook gets a plan (see attention.methods.base.Plan) and returns the rows that go on with the plan that knows them:
    `plan.keep(index)`, beside x[index] or a merged x.
    Text tokens stay. Positions are those of the unreduced grid.
    """

    def __init__(self, config: Any, hidden_size: int):
        super().__init__()
        self.config = config

    def after_vision(self, x: Tensor, plan: Any) -> tuple[Tensor, Any]:
        """x [T, hidden]: the embeddings that enter the decoder, packed."""
        return x, plan

    def after_layer(self, layer: int, x: Tensor, plan: Any) -> tuple[Tensor, Any]:
        """x [T, hidden]: the rows that decoder layer `layer` gave."""
        return x, plan
