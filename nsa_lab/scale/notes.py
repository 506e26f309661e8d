"""What is said beside a plan."""

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from nsa_lab.baselines import REDUCERS
from nsa_lab.config import ExperimentConfig
from nsa_lab.plugin import settings
from nsa_lab.scale.load import Load
from nsa_lab.scale.memory import GIB, Setup
from nsa_lab.scale.shape import Widths, branches_of
from nsa_lab.scale.speed import GPUS_A_HOST, Step

SMALLEST = 1024
"""Below this width launches decide, not rates."""
SLOWER = 1.1
"""What plan may be wrong by under recompute=auto (9% of the steps measured): less is not said to be slower."""


def notes_on(
    config: ExperimentConfig,
    widths: Widths,
    designs: Sequence[Any],
    load: Load,
    setup: Setup,
    samples: int,
) -> list[str]:
    """What the plan leaves out, or takes from where. designs: by layer; an optimiser step has `samples`."""
    said = []
    if setup.gpus > 1:
        said.append("speed on several GPUs is an estimate: it was measured on two and four H100s of one host alone")
    if not setup.precision.startswith("bf16"):
        said.append(f"rates are those of bf16; training.precision={setup.precision} takes longer")
    if widths.hidden < SMALLEST:
        said.append(f"a model {widths.hidden} wide is bound by launches: its step takes longer than rates say")
    said += _reduced(config, widths, load)
    budget, sample = config.training.tokens_per_batch, load.video_tokens + load.text
    if budget is not None and sample > budget:
        said.append(f"training.tokens_per_batch={budget} does not hold this sample of {sample:,} tokens: it is refused")
    if config.training.activation_offload and setup.policy != "auto":
        said.append(f"training.activation_offload is not read where checkpointing is {setup.policy}")
    if setup.ways.count("offload") and setup.gpus > 1:
        beside = min(setup.gpus, GPUS_A_HOST)
        taken = beside * setup.host / GIB
        said.append(f"each process fills memory of its own: {beside} on a host up to {taken:,.0f} GiB")
    if any(design.method == "released" for design in designs):
        said.append("attention.method=released is plain PyTorch: its time and memory are those of the paper's kernels")
    context = config.training.context_parallel
    if setup.gpus > samples * context:
        idle = setup.gpus - samples * context
        said.append(f"an optimiser step has {samples} samples: {idle} of {setup.gpus} GPUs have none")
    kinds = {design.partition.kind for design in designs if branches_of(design)}
    if kinds - {"uniform", "frame"}:
        said.append("blocks and choices are counted on random tokens; those of a real video differ")
    return said


def slower_by_offload(gib: float, step: Step, inside: Step) -> Iterator[str]:
    """That so much of the host's memory costs time; `inside` is the step that leaves all on the GPU."""
    if step.seconds > SLOWER * inside.seconds:
        yield (
            f"training.activation_offload={gib:g} slows this down: {step.seconds:.3f} s a micro-batch, without it "
            f"{inside.seconds:.3f}, since copies are late for {step.late:.3f}; lower it, or leave it 0"
        )


def _reduced(config: ExperimentConfig, widths: Widths, load: Load) -> Iterator[str]:
    """That a reducer is left out, and how much less its model computes."""
    reducer = config.attention.reducer
    if reducer.kind == "none":
        return
    frames = load.video_tokens // load.frame_tokens
    left = REDUCERS[reducer.kind].left(settings(reducer), widths.layers, frames, load.frame_tokens)
    share = f" ({fmean(left) / load.video_tokens:.1%} stay, the mean over the layers)" if left else ""
    yield f"attention.reducer.kind={reducer.kind} is not modelled: what it drops is counted as if it stayed{share}"
