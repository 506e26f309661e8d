"""What each fast part of a training step gives: the same step measured with one part more each time, and densely."""

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsa_lab.bench.measure import Point
from nsa_lab.bench.run import append_row, check_length
from nsa_lab.config import ExperimentConfig, flatten, load_config, to_dict
from nsa_lab.errors import NsaLabError
from nsa_lab.origin import machine_facts, training_device

PLAIN = {
    "model.compile": "false",
    "training.activation_checkpointing": True,
    "training.recompute": "full",
    "training.activation_offload": 0.0,
}
"""The step as it was; without `chunks` the loss holds the logits of all labelled rows at once."""
COMPILED = PLAIN | {"chunks": True, "model.compile": "true"}
AUTO = COMPILED | {"training.recompute": "auto"}
OFFLOAD = AUTO | {"training.activation_offload": 44.0}
"""GiB of the host's memory, unless the config asks for some itself."""
PARTS: dict[str, dict[str, Any]] = {
    "dense, as it was": PLAIN | {"attention.method": "dense"},
    "sparse, as it was": PLAIN,
    "+ chunked loss": PLAIN | {"chunks": True},
    "+ compile": COMPILED,
    "+ recompute=selective": COMPILED | {"training.recompute": "selective"},
    "+ recompute=auto": AUTO,
    "+ activation_offload": OFFLOAD,
    "dense, recompute=auto": AUTO | {"attention.method": "dense"},
    "dense, all of these": OFFLOAD | {"attention.method": "dense"},
}


@dataclass(frozen=True)
class WholeStep:
    """A training step: seconds (the median), the sample's tokens a second, model FLOPs over the chip's (mfu), memory.

    All of one process, which has a sample of its own. base_mib: its weights. peak_mib: all of it. Shares are of the
    GPU's kernels' time, by kind (`profile.kind_of`); busy: the share of the step in which any of them ran; exposed: the
    share in which nothing but communication and copies to the host and back did; waits: how often the host waited for
    the GPU. nan where that cannot be told.
    """

    seconds: float
    tokens_per_second: float
    mfu: float
    peak_mib: float
    base_mib: float
    busy: float
    exposed: float
    waits: float
    shares: dict[str, float]


def run_parts(
    config: ExperimentConfig,
    *,
    lengths: Sequence[int],
    repeats: int,
    out: Path | None,
    optimizer: bool,
    labels: int,
    only: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Measure the steps of PARTS (or `only` those) for every length; print a growing table, append to the CSV `out`.

    With training.devices=N of the config, N processes share the weights (FSDP2) and each has a sample of its own; rows
    are one process's. A row that cannot be measured says why and the next one follows. Raises NsaLabError on a length
    that is not whole frames, or an unknown row.
    """
    for name in only or ():
        if name not in PARTS:
            raise NsaLabError(f"--only {name!r} is no row of --parts; known: {'; '.join(PARTS)}")
    for length in lengths:
        check_length(length)
    machine = machine_facts(config.training.accelerator, config.training.threads)
    what = "training step" if optimizer else "forward and backward"
    world = config.training.devices
    spread = f" on each of {world} processes" if world > 1 else ""
    print(f"{machine['device']}, torch {machine['torch']}: {what}{spread}, {labels} labelled words")
    head = f"{'tokens':>7} {'step':<22} {'seconds':>8} {'tokens/s':>9} {'MFU':>6} {'peak GiB':>9}"
    print(f"{head}  GPU busy, transfers alone, waits, shares")
    rows = []
    for length in lengths:
        for name in only or PARTS:
            try:
                own = _with(config, PARTS[name])
                found = _in_fresh_processes(own, name, length, repeats, optimizer, labels)
            except NsaLabError as error:
                print(f"{length:>7} {name:<22} {error}", flush=True)
                continue
            row: dict[str, Any] = {"what": what, "step": name, "video_tokens": length, "labels": labels}
            row |= {"devices": world, "context_parallel": config.training.context_parallel}
            row |= {"precision": config.training.precision}
            row |= {"activation_offload": own.training.activation_offload}
            print(_line(length, name, found), flush=True)
            if found is None:
                continue
            flat = dataclasses.asdict(found)
            shares = {f"share/{kind}": share for kind, share in flat.pop("shares").items()}
            rows.append(row | flat | shares | {"repeats": repeats, **machine})
            if out is not None:
                append_row(out, rows[-1])
    return rows


def _with(config: ExperimentConfig, part: dict[str, Any]) -> ExperimentConfig:
    changes = {key: value for key, value in part.items() if key != "chunks"}
    if changes["training.activation_offload"] and config.training.activation_offload:
        changes["training.activation_offload"] = config.training.activation_offload
    return load_config(None, flatten(to_dict(config)) | changes)


def _line(length: int, name: str, found: WholeStep | None) -> str:
    if found is None:
        return f"{length:>7} {name:<22} out of memory"
    shares = ", ".join(f"{kind} {share:.0%}" for kind, share in found.shares.items() if share == share)
    mfu = "" if found.mfu != found.mfu else f"{found.mfu:.1%}"
    told = f"{found.busy:.0%}, {found.exposed:.0%}, {found.waits:.0f}, {shares}" if found.busy == found.busy else ""
    return (
        f"{length:>7} {name:<22} {found.seconds:>8.3f} {found.tokens_per_second:>9.0f} {mfu:>6} "
        f"{found.peak_mib / 1024:>9.2f}  {told}"
    )


def _in_fresh_processes(
    config: ExperimentConfig, name: str, length: int, repeats: int, optimizer: bool, labels: int
) -> WholeStep | None:
    # Imported here, because `nsa-lab --help` and a faulty command need neither torch nor the model.
    from nsa_lab.bench.processes import first_answer

    given = (to_dict(config), length, repeats, optimizer, labels, bool(PARTS[name].get("chunks")))
    gpus = training_device(config.training.accelerator).type == "cuda"
    return first_answer(measure_whole, given, config.training.devices, gpus)


def measure_whole(
    tree: dict[str, Any], length: int, repeats: int, optimizer: bool, labels: int, chunks: bool
) -> WholeStep | None:
    """Measure one step in this process; None where the GPU's memory does not do."""
    import torch

    from nsa_lab.bench.measure import memory_mib
    from nsa_lab.bench.profile import profile
    from nsa_lab.bench.step import ANSWER, build_step
    from nsa_lab.model import token_loss

    if not chunks:
        token_loss.ROWS = 1 << 40
    with contextlib.suppress(torch.cuda.OutOfMemoryError):
        step = build_step(tree, Point("", "", length), optimizer, " ".join([ANSWER] * labels))
        base = memory_mib(step.device, peak=False)
        # The first compiles; after five more training.recompute=auto knows what there is room for.
        for _ in range(6 if tree["training"]["recompute"] == "auto" else 2):
            step.run()
        seconds = sorted(step.run() for _ in range(repeats))[repeats // 2]
        peak = memory_mib(step.device, peak=True)
        found = profile(step, seconds)
        tokens = step.batch["input_ids"].numel()
        own = (found.busy, found.exposed, found.waits, found.shares)
        return WholeStep(seconds, tokens / seconds, found.mfu, peak, base, *own)
    return None
