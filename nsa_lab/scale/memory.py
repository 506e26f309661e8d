"""The peak of a training step's memory on one GPU, by what takes it.

FSDP2 shards weights, gradients and optimizer states over N GPUs: float32 masters, bf16 compute (unless the precision
says otherwise). A GPU has the weights of two layers gathered, and what stands outside the layers all along.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal

from nsa_lab.model.offload import AHEAD
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
    policy: Policy | Literal["auto"] = "full"
    compiled: bool = False
    chunked: bool = False
    optimizer: bool = True
    accumulate: int = 1
    """Micro-batches of a step on one GPU."""
    host: float = 0.0
    """Bytes of the host's memory that a process may fill with activations."""
    ways: tuple[str, ...] = ()
    """What each decoder layer keeps under the policy auto, as it names it."""

    @property
    def each(self) -> tuple[str, ...]:
        """What each decoder layer keeps, or all of them: everything, selective, attention, full or offload."""
        return self.ways or ({"none": "everything", "auto": "full"}.get(self.policy, self.policy),)

    def share(self, *ways: str) -> float:
        """Of the decoder layers, those that keep so."""
        return sum(way in ways for way in self.each) / len(self.each)

    def blocks_away(self, widths: Widths, input: float) -> int:
        """Blocks of the vision tower whose `input` of so many bytes is on the host."""
        return min(widths.vision_layers, int(self.host / input))

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
    e, labelled = setup.e, load.labelled
    workspace = WORKSPACE if any(branches_of(design) for design, _ in layers) else 0
    alone = {
        "logits of every row": activations.logits(widths, load.tokens, e),
        "logits of the labelled rows": activations.logits(widths, labelled, e),
        f"logits of {CHUNK:,} rows at a time": activations.logits(widths, min(CHUNK, labelled), e),
        "workspace of the attention kernels": float(workspace),
    }
    own = activations.logits(widths, min(CHUNK, labelled) if setup.chunked else labelled, e)
    states, gradients = _states(counts, setup)
    gathered = _gathered(widths, counts, setup)
    found = []
    for moment, share, held, backward in _moments(widths, counts, layers, load, setup, workspace, own):
        done = gradients if setup.accumulate > 1 else share * gradients
        parts = {"gradients": done, "gathered weights": gathered, "activations": held, "one layer's backward": backward}
        found.append(Memory({**states, **parts}, moment, alone))
    return max(found, key=lambda one: one.total)


def _moments(
    widths: Widths,
    counts: Mapping[str, int],
    layers: list[tuple[Any, float]],
    load: Load,
    setup: Setup,
    workspace: float,
    logits: float,
) -> Iterator[tuple[str, float, float, float]]:
    """Moments at which the peak may be: the share of the gradients that is there, activations, one layer's backward."""
    e, ways = setup.e, setup.ways or setup.each * len(layers)
    decoder = [activations.decoder_layer(widths, d, load, e, setup.compiled, gate) for d, gate in layers]
    vision = activations.vision_layer(widths, load, e, setup.compiled)
    # A selective policy computes the vision tower again whole.
    seen, away = "everything" if setup.policy == "none" else "full", setup.blocks_away(widths, vision.input)
    below = activations.held(widths, load, e) + activations.around_vision(widths, load, e)
    below += (widths.vision_layers - away) * vision.kept(seen) + min(AHEAD, away) * vision.input
    gathering = activations.gathering(widths, load, e)
    passing = [max(layer.passing(way), workspace) + gathering for layer, way in zip(decoder, ways, strict=True)]
    kept = list(accumulate(layer.kept(way) for layer, way in zip(decoder, ways, strict=True)))
    under_way = AHEAD * max((own.saved for own, way in zip(decoder, ways, strict=True) if way == "offload"), default=0)
    head, last = _gradients_of_decoder(counts)
    begins = below + under_way + kept[-1] + activations.around_decoder(widths, load, e)
    yield "the decoder's backward begins", head, begins, max(passing[-1], logits)
    for number in range(len(kept) - 1):
        share = last + (head - last) * (number + 1) / len(kept)
        yield f"the backward of decoder layer {number}", share, below + under_way + kept[number], passing[number]
    yield "the decoder's backward ends", last, below, max(passing)
    yield "the vision tower's backward", 1.0, below, vision.passing(seen)
    yield "the optimizer's step", 1.0, 0.0, 0.0


def _states(counts: Mapping[str, int], setup: Setup) -> tuple[dict[str, float], float]:
    master, gradient, states, _ = BYTES[setup.precision]
    total = sum(counts.values()) / setup.gpus
    return {"weights": master * total, "optimizer states": states * total * setup.optimizer}, gradient * total


def _gradients_of_decoder(counts: Mapping[str, int]) -> tuple[float, float]:
    """The share of the gradients that is there where the decoder's first backward begins, and where it ends."""
    total, late = sum(counts.values()), counts.get("vision tower", 0) + counts.get("merger", 0)
    return counts.get("output head", 0) / total, (total - late) / total


def _gathered(widths: Widths, counts: Mapping[str, int], setup: Setup) -> float:
    """Whole weights in the compute dtype, and one layer's whole gradient on its way to its shards (in float32)."""
    if setup.gpus == 1 and setup.precision.endswith("true"):
        return 0.0
    root = counts.get("embeddings", 0) + counts.get("output head", 0) + counts.get("merger", 0)
    layer = (counts["language model"] + counts.get("gates", 0)) / widths.layers
    return setup.e * (2 * root + 3 * layer) + 4 * layer
