"""What a training needs and costs: parameters, memory, FLOPs, step time, GPU-hours; from the meta device."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from nsa_lab.attention.budget import Cost
from nsa_lab.config import ExperimentConfig
from nsa_lab.config.schema import TrainingConfig
from nsa_lab.errors import NsaLabError
from nsa_lab.model.compile import compiles
from nsa_lab.model.flops import peak_flops
from nsa_lab.plugin import settings
from nsa_lab.scale import Policy, activations, flops
from nsa_lab.scale.activations import gate_bytes
from nsa_lab.scale.auto import host_bytes, settled
from nsa_lab.scale.keys import branch_costs
from nsa_lab.scale.load import ANSWER, TEXT, Load, load_of
from nsa_lab.scale.memory import BYTES, GIB, Memory, Setup, memory
from nsa_lab.scale.notes import notes_on, slower_by_offload
from nsa_lab.scale.rates import GPUS
from nsa_lab.scale.shape import Widths, meta_model, parameters
from nsa_lab.scale.speed import Step, step_time

FITS = 0.95
"""The share of a GPU's memory that a plan may fill: the allocator loses some between its pieces."""
CLUSTERS = (1, 8, 64)
LONGEST = 2**20
"""Tokens of a sample that are looked at, video or text."""
FRAGMENTS = 256
"""The search for the longest sample ends when it knows it to this many video tokens."""


@dataclass(frozen=True)
class Fit:
    """Whether the planned micro-batch fits on each of `gpus`, and the longest sample that does (0: none)."""

    gpus: int
    peak_gib: float
    fits: bool
    longest: int


@dataclass(frozen=True)
class Plan:
    """A training on `setup.gpus` of `gpu`; times and FLOPs are of one micro-batch, or a share of one, on each of them.

    batch: samples of an optimiser step.
    """

    gpu: str
    setup: Setup
    load: Load
    batch: int
    parameters: Mapping[str, int]
    memory: Memory
    flops: Mapping[str, Mapping[str, float]]
    step: Step
    keys: Mapping[str, float]
    fits: tuple[Fit, ...]
    notes: tuple[str, ...]
    host: Mapping[str, float] = field(default_factory=dict)
    """Bytes of the host's memory that a process fills with activations, by whose they are."""

    @property
    def forward_flops(self) -> float:
        return sum(sum(group.values()) for group in self.flops.values())

    @property
    def tokens_per_second(self) -> float:
        """Of one GPU, video and text."""
        return self.load.tokens / self.step.seconds

    @property
    def mfu(self) -> float:
        """Of the GPU's dense bf16 peak; what is computed again does not count."""
        peak = peak_flops(GPUS[self.gpu][0])
        assert peak is not None
        return 3 * self.forward_flops / self.step.seconds / peak

    @property
    def seconds(self) -> float:
        """Of an optimiser step: its micro-batches on one GPU after the other; a GPU without a sample waits."""
        return self.setup.accumulate * self.step.seconds

    @property
    def tokens_per_second_in_all(self) -> float:
        return self.batch * (self.load.video_tokens + self.load.text) / self.seconds

    def hours(self, samples: int) -> float:
        """Of a training on so many samples, all as long as the planned one."""
        return samples / self.batch * self.seconds / 3600


class Subject:
    """The model of a config on the meta device, and what its layers' designs read of a sample of a given length."""

    def __init__(self, config: ExperimentConfig):
        self.config = config
        self.model = meta_model(config)
        self.widths = Widths.of(self.model.config)
        self.parameters = parameters(self.model)
        self.counted: dict[str, Mapping[str, Cost]] = {}
        e = BYTES[config.training.precision][3]
        gates: dict[str, float] = {}
        self.layers: list[tuple[Any, float]] = []
        for attention in self.model.attentions():
            key = _key(attention.design)
            if key not in gates:
                gates[key] = _gate_bytes(attention, self.widths.hidden, e)
            self.layers.append((attention.design, gates[key]))

    def costs(self, load: Load) -> list[Mapping[str, Cost]]:
        """By layer; layers of one design are counted once."""
        layout = load.layout()
        keys = [f"{load.video_tokens} {load.text} {_key(design)}" for design, _ in self.layers]
        for number, (key, (design, _)) in enumerate(zip(keys, self.layers, strict=True)):
            if key not in self.counted:
                self.counted[key] = branch_costs(design, number, layout)
        return [self.counted[key] for key in keys]

    def memory(self, load: Load, setup: Setup) -> Memory:
        return memory(self.widths, self.parameters, self.layers, load, setup)

    def settled(self, load: Load, setup: Setup, limit: float) -> Setup:
        """`setup` under the policy auto, where a GPU has `limit` bytes."""
        layer, vision = self.saved(load, setup)
        return settled(setup, self.widths, layer, vision, load.tokens, lambda own: limit - self.memory(load, own).total)

    def saved(self, load: Load, setup: Setup) -> tuple[activations.Layer, activations.Layer]:
        """What a decoder layer and a block of the vision tower save; where designs differ, the first layer."""
        design, gate = self.layers[0]
        return (
            activations.decoder_layer(self.widths, design, load, setup.e, setup.compiled, gate),
            activations.vision_layer(self.widths, load, setup.e, setup.compiled),
        )

    def flops(self, costs: list[Mapping[str, Cost]], load: Load) -> dict[str, dict[str, float]]:
        """One micro-batch's forward, by group: dense products, the vision tower's attention, the decoder's."""
        designs = [design for design, _ in self.layers]
        return {
            "dense": flops.dense_flops(self.model, self.widths, load),
            "vision": {"attention": flops.vision_attention_flops(self.widths, load)},
            "attention": {
                **flops.branch_flops(self.widths, costs, load),
                "text rows": flops.text_flops(self.widths, designs, load),
            },
        }

    def longest(self, load: Load, setup: Setup, gib: float) -> int:
        """Video tokens of the longest sample that fits, alone in its micro-batch."""
        frame, setup = load.frame_tokens, replace(setup, ways=())
        low, high = 0, LONGEST // frame
        while (high - low) * frame > FRAGMENTS:
            middle = (low + high) // 2
            wanted = replace(load, video_tokens=middle * frame, samples=1)
            fits = self.memory(wanted, setup).total <= FITS * gib * GIB
            low, high = (middle, high) if fits else (low, middle)
        return low * frame


def make_plan(
    config: ExperimentConfig,
    *,
    gpus: int = 8,
    gpu: str = "h100",
    video_tokens: int | None = None,
    text: int = TEXT,
    answer: int | None = None,
    policy: Policy | None = None,
    compiled: bool | None = None,
    chunked: bool = True,
    optimizer: bool = True,
    subject: Subject | None = None,
) -> Plan:
    """Plan the training of `config` on `gpus`; nothing is downloaded and nothing trained.

    video_tokens: of a sample, by default the longest that the data settings allow; `text` tokens follow it, of which
    `answer` are labelled (by default ANSWER, or all where they are fewer). policy: what is computed again in the
    backward, by default what activation_checkpointing and recompute say. compiled: the dense parts, by default as
    model.compile says on such a GPU. chunked: logits of 1,024 rows at a time, as a training has them. subject: that of
    `config`, where it was made before. Raises NsaLabError where the model's shape is not known here, or a number makes
    no sense.

    The samples of an optimiser step are spread over the GPUs, batch_size of them at a time on each (or what goes into
    tokens_per_batch), or on each group of training.context_parallel.
    """
    if gpu not in GPUS:
        raise NsaLabError(f"--gpu {gpu!r} has no measured rates; known: {', '.join(GPUS)}")
    answer = min(ANSWER, text) if answer is None else answer
    _check_numbers(gpus, 1 if video_tokens is None else video_tokens, text, answer)
    training, context = config.training, config.training.context_parallel
    if gpus % context:
        raise NsaLabError(f"--gpus {gpus} are no groups of training.context_parallel={context}; give a multiple of it")
    subject, load = subject or Subject(config), load_of(config, video_tokens, text, answer)
    samples = load.samples * training.accumulate
    if load.video_tokens > LONGEST:
        raise NsaLabError(
            f"data.* allows samples of {load.video_tokens:,} video tokens; give --tokens, {LONGEST:,} at most"
        )
    gib = GPUS[gpu][1]
    if compiled is None:
        compiled = compiles(config.model.compile, subject.widths.hidden, torch.device("cuda"))

    chosen = policy or _policy(training)
    host = training.activation_offload * GIB if chosen == "auto" else 0.0

    def setup_on(count: int, host: float = host) -> Setup:
        steps = max(1, -(-samples // (load.samples * (count // context))))
        made = Setup(training.precision, count, chosen, compiled, chunked, optimizer, steps, host)
        return subject.settled(load, made, FITS * gib * GIB) if chosen == "auto" else made

    setup = setup_on(gpus)
    costs = subject.costs(load)
    amounts = subject.flops(costs, load)

    def step_of(setup: Setup) -> Step:
        return step_time(subject.widths, subject.parameters, subject.layers, amounts, load, setup, gpu)

    step = step_of(setup)
    notes = notes_on(config, subject.widths, [design for design, _ in subject.layers], load, setup, samples)
    if host and subject.memory(load, inside := setup_on(gpus, 0.0)).total <= FITS * gib * GIB:
        notes += slower_by_offload(training.activation_offload, step, step_of(inside))
    fits = []
    for count in sorted(count for count in {*CLUSTERS, gpus} if count % context == 0):
        there = setup_on(count)
        peak = subject.memory(load, there).total
        fits.append(Fit(count, peak / GIB, peak <= FITS * gib * GIB, subject.longest(load, there, gib)))
    return Plan(
        gpu=gpu,
        setup=setup,
        load=load,
        batch=samples,
        parameters=subject.parameters,
        memory=subject.memory(load, setup),
        flops=amounts,
        step=step,
        keys=_keys(costs),
        fits=tuple(fits),
        notes=tuple(notes),
        host=host_bytes(setup, subject.widths, *subject.saved(load, setup)),
    )


def _check_numbers(gpus: int, tokens: int, text: int, answer: int) -> None:
    for name, value in (("--gpus", gpus), ("--tokens", tokens), ("--text", text), ("--labelled", answer)):
        if value < 1:
            raise NsaLabError(f"{name} {value} is not positive")
    for name, value in (("--tokens", tokens), ("--text", text)):
        if value > LONGEST:
            raise NsaLabError(f"{name} {value} is more than plan looks at, {LONGEST}")
    if answer > text:
        raise NsaLabError(f"--labelled {answer} is more than the --text {text} that it is part of")


def _policy(training: TrainingConfig) -> Policy | Literal["auto"]:
    return training.recompute if training.activation_checkpointing else "none"


def _key(design: Any) -> str:
    return repr((design.method, settings(design, "method"), design.text_window))


def _gate_bytes(attention: Any, hidden: int, e: int) -> float:
    sparse = getattr(attention.method, "sparse", None)
    return 0.0 if sparse is None else gate_bytes(sparse.gate, hidden, e)


def _keys(costs: list[Mapping[str, Cost]]) -> dict[str, float]:
    """Keys and pooled keys that a video query reads in a layer, by branch, the mean over the layers."""
    names = dict.fromkeys(name for layer in costs for name in layer)
    read = {
        name: sum(layer.get(name, Cost()).keys + layer.get(name, Cost()).pooled for layer in costs) for name in names
    }
    return {name: total / len(costs) for name, total in read.items()}
