"""The peak of a training step's memory on one GPU, by what takes it.

FSDP2 shards weights, gradients and optimizer states over N GPUs: float32 masters, bf16 compute (unless the precision
says otherwise). A GPU has the weights of two layers gathered, and what stands outside the layers all along.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nsa_lab.scale import Policy, activations
from nsa_lab.scale.load import Load
from nsa_lab.scale.shape import Widths, branches_of

GIB = 2**30
WORKSPACE = 2 * GIB
"""What the kernels' temporaries may take (nsa_kernels.runtime.WORKSPACE_BYTES)."""
CHUNK = 1024
"""Rows whose logits a chunked loss has at a time."""
BYTES = {
    "bf16-mixed": (4, 4, 8, 2),
    "16-mixed": (4, 4, 8, 2),
    "bf16-true": (2, 2, 4, 2),
    "32-true": (4, 4, 8, 4),
}
"""Bytes of a parameter's master, gradient and AdamW states, and of a number in the compute dtype, by precision."""


@dataclass(frozen=True)
class Setup:
    """How a step is run. `optimizer` off: forward and backward alone, as a large model is measured on one card."""

    precision: str = "bf16-mixed"
    gpus: int = 1
    policy: Policy = "full"
    compiled: bool = False
    chunked: bool = False
    optimizer: bool = True
    accumulate: int = 1
    """Micro-batches of a step on one GPU."""

    @property
    def e(self) -> int:
        return BYTES[self.precision][3]


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the moment of the peak, by what takes them, and which moment that is.

    alone: what takes its memory for a moment, inside these parts or instead of them.
    """

    parts: Mapping[str, float]
    moment: str
    alone: Mapping[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def memory(
    widths: Widths, counts: Mapping[str, int], layers: list[tuple[Any, float]], load: Load, setup: Setup
) -> Memory:
    """The peak of a step. counts: parameters by part; layers: the decoder's designs, and what a gate saves."""
    e, policy = setup.e, setup.policy
    decoder = [activations.decoder_layer(widths, d, load, e, setup.compiled, gate) for d, gate in layers]
    vision = activations.vision_layer(widths, load, e, setup.compiled)
    seen: Policy = "none" if policy == "none" else "full"  # a selective policy computes the vision tower again whole
    below = activations.held(widths, load, e) + activations.around_vision(widths, load, e)
    below += widths.vision_layers * vision.kept(seen)
    above = activations.around_decoder(widths, load, e) + sum(layer.kept(policy) for layer in decoder)
    passing = max(layer.passing(policy) for layer in decoder)
    workspace = WORKSPACE if any(branches_of(design) for design, _ in layers) else 0
    passing = max(passing, workspace) + activations.gathering(widths, load, e)
    labelled = load.labelled
    alone = {
        "logits of every row": activations.logits(widths, load.tokens, e),
        "logits of the labelled rows": activations.logits(widths, labelled, e),
        f"logits of {CHUNK:,} rows at a time": activations.logits(widths, min(CHUNK, labelled), e),
        "workspace of the attention kernels": float(workspace),
    }
    own = activations.logits(widths, min(CHUNK, labelled) if setup.chunked else labelled, e)
    states, gradients = _states(counts, setup)
    done = {
        moment: gradients if setup.accumulate > 1 else share * gradients for moment, share in _order(counts).items()
    }
    gathered = _gathered(widths, counts, setup)
    moments = {
        "the decoder's backward begins": {"activations": above + below, "one layer's backward": max(passing, own)},
        "the decoder's backward ends": {"activations": below, "one layer's backward": passing},
        "the vision tower's backward": {"activations": below, "one layer's backward": vision.passing(seen)},
        "the optimizer's step": {"activations": 0.0, "one layer's backward": 0.0},
    }
    found = [
        Memory({**states, "gradients": done[moment], "gathered weights": gathered, **parts}, moment, alone)
        for moment, parts in moments.items()
    ]
    return max(found, key=lambda one: one.total)


def _states(counts: Mapping[str, int], setup: Setup) -> tuple[dict[str, float], float]:
    master, gradient, states, _ = BYTES[setup.precision]
    total = sum(counts.values()) / setup.gpus
    return {"weights": master * total, "optimizer states": states * total * setup.optimizer}, gradient * total


def _order(counts: Mapping[str, int]) -> dict[str, float]:
    """The share of the gradients that is there at each moment of a first backward."""
    late = counts.get("vision tower", 0) + counts.get("merger", 0)
    total = sum(counts.values())
    decoder = (total - late) / total
    return {
        "the decoder's backward begins": counts.get("output head", 0) / total,
        "the decoder's backward ends": decoder,
        "the vision tower's backward": 1.0,
        "the optimizer's step": 1.0,
    }


def _gathered(widths: Widths, counts: Mapping[str, int], setup: Setup) -> float:
    """Whole weights in the compute dtype, and one layer's whole gradient on its way to its shards (in float32)."""
    if setup.gpus == 1 and setup.precision.endswith("true"):
        return 0.0
    root = counts.get("embeddings", 0) + counts.get("output head", 0) + counts.get("merger", 0)
    layer = (counts["language model"] + counts.get("gates", 0)) / widths.layers
    return setup.e * (2 * root + 3 * layer) + 4 * layer
