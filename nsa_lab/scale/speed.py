"""Seconds of a training step, by kind of work, from measured rates."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nsa_lab.model.offload import AHEAD
from nsa_lab.model.recompute import spacing
from nsa_lab.scale import activations, flops
from nsa_lab.scale.load import Load
from nsa_lab.scale.memory import BYTES, Setup
from nsa_lab.scale.rates import Rate, has_rate, rate
from nsa_lab.scale.shape import Widths, branches_of

GPUS_A_HOST = 8
ADAMW_BYTES = 28
"""Read and written of a parameter by AdamW: master and two states both ways, the gradient read."""


@dataclass(frozen=True)
class Work:
    """Seconds of one kind of work in a step, and the rate that they come from."""

    seconds: float
    rate: Rate


@dataclass(frozen=True)
class Step:
    """One micro-batch: `work` by kind, and how much of the communication, and of the copies to the host and back, no
    computation hides."""

    work: Mapping[str, Work]
    exposed: float
    late: float = 0.0

    @property
    def seconds(self) -> float:
        return sum(own.seconds for own in self.work.values()) + self.exposed + self.late


def step_time(
    widths: Widths,
    counts: Mapping[str, int],
    designs: list[tuple[Any, float]],
    amounts: Mapping[str, Mapping[str, float]],
    load: Load,
    setup: Setup,
    gpu: str,
) -> Step:
    """The micro-batch on each of `setup.gpus`. amounts: forward FLOPs by group and name (see plan)."""
    work = _products(widths, amounts, load, setup, gpu)
    work |= _attention(amounts, designs, load, setup, gpu)
    work |= _elementwise(widths, designs, amounts, load, setup, gpu)
    if setup.optimizer:
        moved = ADAMW_BYTES * BYTES[setup.precision][0] / 4 * sum(counts.values()) / setup.gpus
        own = rate(gpu, "memory")
        work["optimizer"] = Work(moved / setup.accumulate / own.value / 1e9, own)
    computed = sum(own.seconds for own in work.values())
    exposed = max(0.0, _communication(counts, setup, gpu) - computed)
    decoder = sum(amounts["dense"].values()) - _seen(amounts) + sum(amounts["attention"].values())
    share = decoder / sum(sum(group.values()) for group in amounts.values())
    late = _late(widths, designs, load, setup, share * computed, rate(gpu, "link to the host").value * 1e9)
    return Step(work, exposed + _gathering(widths, load, setup, gpu), late)


def _again(setup: Setup) -> float:
    """The share of the decoder's layers of which the backward computes anything again."""
    return 1 - setup.share("everything", "offload")


def _products(
    widths: Widths, amounts: Mapping[str, Mapping[str, float]], load: Load, setup: Setup, gpu: str
) -> dict[str, Work]:
    """Linear layers. Where the vision MLP's width is no multiple of 8, cuBLAS falls back to slow kernels."""
    seen = _seen(amounts)
    mlp = flops.vision_mlp_flops(widths, load)
    slow = mlp if widths.vision_intermediate % 8 != 0 and not setup.compiled else 0.0
    decoder = sum(amounts["dense"].values()) - seen
    again = setup.share("full", "attention") * decoder + setup.share("selective") * flops.widening_flops(widths, load)
    passes = 3 + (setup.policy != "none")
    plain, unaligned = rate(gpu, "matmul"), rate(gpu, "unaligned matmul")
    total = passes * (seen - slow) + 3 * decoder + again
    found = {"products": Work(total / plain.value / 1e12, plain)}
    if slow:
        found["products of the vision MLP"] = Work(passes * slow / unaligned.value / 1e12, unaligned)
    return found


def _seen(amounts: Mapping[str, Mapping[str, float]]) -> float:
    """FLOPs of the vision tower's products, the merger's among them."""
    return amounts["dense"].get("vision tower", 0.0) + amounts["dense"].get("merger", 0.0)


def _attention(
    amounts: Mapping[str, Mapping[str, float]], designs: list[tuple[Any, float]], load: Load, setup: Setup, gpu: str
) -> dict[str, Work]:
    """Branches: forward and backward by one rate, and under full checkpointing one forward more."""
    sizes = [design.partition.block_size for design, _ in designs if branches_of(design)]
    size = max(sizes, default=0)
    found = {}
    again = setup.share("full")
    for name, amount in amounts["attention"].items():
        kind = "window" if name == "dense" and load.context > 1 else _kernel(gpu, name)
        forward = rate(gpu, kind, "forward", load.video_tokens, size)
        seconds = amount / forward.value / 1e12
        if kind == "topk":
            found[name] = Work(seconds * (1 + again), forward)
            continue
        both = rate(gpu, kind, "both", load.video_tokens, size)
        found[name] = Work(seconds * again + 3.5 * amount / both.value / 1e12, both)
    vision, own = amounts["vision"]["attention"], rate(gpu, "vision attention")
    found["vision attention"] = Work((3.5 + (setup.policy != "none")) * vision / own.value / 1e12, own)
    return found


def _kernel(gpu: str, name: str) -> str:
    """Whose rate counts for what is read under `name`; that of the slowest where none was measured."""
    if name.endswith(flops.SCORES):
        return "topk"
    if name == "text rows":
        return "window"  # the kernel that computes them
    return name if has_rate(gpu, name) else "selection"


def _elementwise(
    widths: Widths,
    designs: list[tuple[Any, float]],
    amounts: Mapping[str, Mapping[str, float]],
    load: Load,
    setup: Setup,
    gpu: str,
) -> dict[str, Work]:
    """Norms, activations, rotary embeddings, sums and copies, as the bytes that the dense parts save and read again."""
    e, compiled = setup.e, setup.compiled
    moved = 0.0
    for design, gate in designs:
        layer = activations.decoder_layer(widths, design, load, e, compiled, gate)
        moved += (3 + _again(setup)) * (layer.residuals + layer.again)
    vision = activations.vision_layer(widths, load, e, compiled)
    passes = 3 + (setup.policy != "none")
    moved += passes * widths.vision_layers * (vision.residuals + vision.again + vision.attention)
    own = rate(gpu, "elementwise, compiled" if compiled else "elementwise, eager")
    found = {"elementwise": Work(moved / own.value / 1e9, own)}
    branches = max((len(branches_of(design)) for design, _ in designs), default=0)
    if branches:
        traffic = e * widths.heads * widths.head_dim * load.video * (branches + 1)
        rates = [rate(gpu, "combine", direction, load.video_tokens, 64) for direction in ("forward", "both")]
        layers = sum(bool(branches_of(design)) for design, _ in designs)
        seconds = setup.share("full") / rates[0].value + 1 / rates[1].value
        found["combine"] = Work(layers * traffic * seconds / 1e9, rates[1])
    return found


def _gathering(widths: Widths, load: Load, setup: Setup, gpu: str) -> float:
    """Keys and values of each layer, for the forward and what computes it again; their gradients in float32."""
    if load.context == 1:
        return 0.0
    link = rate(gpu, "link in a host" if load.context <= GPUS_A_HOST else "link between hosts")
    numbers = 2 * widths.groups * widths.head_dim * load.keys * widths.layers * (load.context - 1) / load.context
    return numbers * ((1 + _again(setup)) * setup.e + activations.FULL) / link.value / 1e9


def _late(
    widths: Widths, designs: list[tuple[Any, float]], load: Load, setup: Setup, decoder: float, link: float
) -> float:
    """Seconds of copies to the host and back, `link` bytes a second, that are not over when they are waited for.

    decoder: seconds of its layers, forward and backward. A layer that takes back what it saved waits for all copies
    that have begun, of a layer AHEAD of it too (nsa_lab/model/offload.py): every block of the vision tower does.
    """
    seen = activations.vision_layer(widths, load, setup.e, setup.compiled).input
    away = sum(way == "offload" for way in setup.ways)
    late = setup.blocks_away(widths, seen) * seen / link
    if away:
        design, gate = designs[0]
        copy = activations.decoder_layer(widths, design, load, setup.e, setup.compiled, gate).saved / link
        forward = decoder / widths.layers / (3 + _again(setup))
        apart, backward = spacing(widths.layers, away), (2 + _again(setup)) * forward
        back = copy if apart <= AHEAD else max(0.0, copy - AHEAD * backward)
        late += away * (max(0.0, copy - apart * forward) + back)
    return late


def _communication(counts: Mapping[str, int], setup: Setup, gpu: str) -> float:
    """Weights gathered for forward and backward in the compute dtype, gradients scattered in float32."""
    if setup.gpus == 1:
        return 0.0
    link = rate(gpu, "link in a host" if setup.gpus <= GPUS_A_HOST else "link between hosts")
    moved = (2 * setup.e + 4) * sum(counts.values()) * (setup.gpus - 1) / setup.gpus
    return moved / link.value / 1e9
