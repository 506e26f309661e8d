"""The budget that attention really spent: keys a video query reads, by layer and branch, beside dense and the paper."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from nsa_lab.attention.budget import Cost, paper_ratio
from nsa_lab.attention.methods.dense import causal_mean
from nsa_lab.attention.trace import Trace
from nsa_lab.plugin import settings

ALL = "all"
"""The row of a whole layer."""


@dataclass
class Spent:
    """Costs of layers and branches over clips, weighted by their queries; lengths: video tokens of each clip."""

    lengths: list[int] = field(default_factory=list)
    costs: dict[tuple[int, str], Cost] = field(default_factory=dict)
    dense: float = 0.0
    paper: dict[int, float] = field(default_factory=dict)

    def add(self, attentions: list[Any], trace: Trace, lengths: Tensor) -> None:
        """Add one clip; lengths [1]: its video tokens. The trace must have wanted `cost`."""
        queries = int(lengths.sum())
        self.lengths.append(queries)
        self.dense += queries * causal_mean(lengths)
        for layer, attention in enumerate(attentions):
            method = attention.method
            by_branch = trace.found.get((layer, "cost"))
            for branch, cost in by_branch.items() if isinstance(by_branch, dict) else ():
                self._grow(layer, branch, queries, cost)
            self._grow(layer, ALL, queries, method.cost(trace, lengths))
            ratio = paper_ratio(method.attended(settings(attention.design, "method")), queries)
            self.paper[layer] = self.paper.get(layer, 0.0) + queries * ratio

    def _grow(self, layer: int, branch: str, queries: int, cost: Cost) -> None:
        more = Cost(cost.keys * queries, cost.pooled * queries, cost.scored * queries)
        self.costs[layer, branch] = self.costs.get((layer, branch), Cost()) + more


def budget_rows(spent: Spent) -> list[dict[str, Any]]:
    """A row for each layer and branch, and one (`all`) for the layer: means over all queries of all clips.

    keys: token keys read, exactly, with the ramp; pooled: pooled keys read; scored: blocks scored for the choice;
    of_dense: keys over those that dense causal attention reads among the video tokens; paper_ratio: 2K / (L - 1), at
    most 1, of the whole layer.
    """
    queries, rows = sum(spent.lengths), []
    for (layer, branch), cost in spent.costs.items():
        read = {"keys": cost.keys / queries, "pooled": cost.pooled / queries, "scored": cost.scored / queries}
        share = {"dense": spent.dense / queries, "of_dense": cost.keys / spent.dense}
        paper = spent.paper[layer] / queries if branch == ALL else None
        rows.append({"layer": layer, "branch": branch, **read, **share, "paper_ratio": paper})
    return rows
