"""Watch a model's attention over clips. A layer is measured as soon as it has run, and what it held is let go."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn

from nsa_lab.analysis.attention.gates import GateSums
from nsa_lab.analysis.attention.overlap import (
    QueryOverlap,
    Selected,
    Shared,
    add_layers,
    candidates,
    comparable,
    selected,
)
from nsa_lab.analysis.attention.sinks import Received, SinkSums, branch_received, dense_received
from nsa_lab.analysis.attention.spent import Spent
from nsa_lab.attention.branches import Branch
from nsa_lab.attention.inputs import BranchInputs, DenseInputs
from nsa_lab.attention.sparse import GatedBranches
from nsa_lab.attention.trace import Trace
from nsa_lab.model import MODEL_INPUTS, VideoNSAForConditionalGeneration
from nsa_lab.plugin import switched_on

GATED, DENSE = "gated", "dense"
"""Beside the branches' names: the sum of all branches under the gates, and a dense layer."""


@dataclass
class Findings:
    """What was measured, by layer (and branch); `silent`: layers that tell nothing of keys."""

    gates: dict[int, GateSums] = field(default_factory=dict)
    sinks: dict[tuple[int, str], SinkSums] = field(default_factory=dict)
    queries: dict[int, QueryOverlap] = field(default_factory=dict)
    layers: dict[tuple[int, int], Shared] = field(default_factory=dict)
    spent: Spent = field(default_factory=Spent)
    silent: set[int] = field(default_factory=set)


class Watch(Trace):
    """The trace of one forward over one clip; adds to `findings` what each layer shows."""

    def __init__(self, model: VideoNSAForConditionalGeneration, findings: Findings):
        super().__init__("gates", "choice", "cost", "inputs", "dense")
        self.attentions, self.findings = model.attentions(), findings
        self.seen: set[int] = set()
        self.before: Selected | None = None

    def record(self, layer: int, name: str, value: Any) -> None:
        super().record(layer, name, value)
        if name == "inputs":
            self._sparse(layer, self.found.pop((layer, name)))
        elif name == "dense":
            self._dense(layer, self.found.pop((layer, name)))

    def _dense(self, layer: int, inputs: DenseInputs) -> None:
        self.seen.add(layer)
        if len(inputs.q):
            self._count(layer, DENSE, dense_received(inputs))

    def _sparse(self, layer: int, inputs: BranchInputs) -> None:
        """`inputs` come last of what a sparse layer records."""
        self.seen.add(layer)
        gates, choice = self.found.pop((layer, "gates")), self.found.pop((layer, "choice"), None)
        if not len(gates):
            return
        self._gates(layer, gates)
        found, total = branch_received(branches_of(self.attentions[layer].method), inputs, gates)
        for name, got in {**found, GATED: total}.items():
            self._count(layer, name, got)
        if choice is not None:
            self._overlap(layer, choice, inputs)

    def finish(self) -> None:
        """After the forward: what is left, of layers whose method tells its gates alone."""
        for layer, gates in self.of("gates").items():
            self._gates(layer, gates)
        self.findings.silent |= set(range(len(self.attentions))) - self.seen

    def _gates(self, layer: int, gates: torch.Tensor) -> None:
        if len(gates):
            names = list(switched_on(self.attentions[layer].design.branches))
            self.findings.gates.setdefault(layer, GateSums(names, gates.shape[1])).add(gates)

    def _count(self, layer: int, name: str, got: Received) -> None:
        self.findings.sinks.setdefault((layer, name), SinkSums()).add(got)

    def _overlap(self, layer: int, choice: torch.Tensor, inputs: BranchInputs) -> None:
        own = selected(layer, choice, inputs)
        overlap = self.findings.queries.setdefault(layer, QueryOverlap())
        overlap.add(choice, candidates(inputs), inputs.partition.num_blocks)
        if self.before is not None and comparable(self.before, own):
            pair = self.findings.layers.setdefault((self.before.layer, layer), Shared())
            add_layers(pair, self.before, own)
        self.before = own


def branches_of(method: nn.Module) -> dict[str, Branch]:
    """The branches of a sparse layer's method, by name."""
    sparse = next(module for module in method.modules() if isinstance(module, GatedBranches))
    return {name: cast(Branch, branch) for name, branch in sparse.branches.items()}


@torch.no_grad()
def watch_clips(model: VideoNSAForConditionalGeneration, batches: Iterable[Mapping[str, Any]]) -> Findings:
    """Run the clips of `batches`, one packed sample each, through `model` on its device, and measure its attention.

    Memory stays that of one layer: nothing of the size queries x keys is held.
    """
    findings, was_training = Findings(), model.training
    merge = model.config.vision_config.spatial_merge_size
    try:
        model.eval()
        for batch in batches:
            inputs = {name: batch[name].to(model.device) for name in MODEL_INPUTS if name in batch}
            inputs["pixel_values_videos"] = inputs["pixel_values_videos"].to(model.dtype)
            watch = Watch(model, findings)
            model(**inputs, use_cache=False, logits_to_keep=1, trace=watch)
            watch.finish()
            findings.spent.add(watch.attentions, watch, batch["video_grid_thw"].prod(1) // merge**2)
    finally:
        model.train(was_training)
    return findings
