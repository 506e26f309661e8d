"""What the command line prints."""

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from nsa_lab.baselines import REDUCERS
from nsa_lab.config import ExperimentConfig
from nsa_lab.config.rules import clip_grids
from nsa_lab.config.sizes import decoder_layers
from nsa_lab.plugin import settings

if TYPE_CHECKING:
    from nsa_lab.training import RunResult

PAPER_LENGTH = 128_000
PERCENT = ("accuracy", "paper_ratio", "ratio_to_dense", "tokens_kept", "share_of_step", "data_wait", "mfu")
HIDDEN = ("gate/", "gradient_norm", "learning_rate")


def say(text: str) -> None:
    """A line on stderr, so that stdout holds the output alone."""
    print(text, file=sys.stderr, flush=True)


def print_result(config: ExperimentConfig, config_file: Path, result: "RunResult") -> None:
    """The final metrics of a run, its directory, and how to look at it."""
    if result.recorded:
        say("this run was over already; these are its recorded results (training.resume=false starts over)")
    print_metrics(result.metrics)
    print(f"\nrun directory: {result.directory}")
    if config.tracking.enabled:
        store = f" {config_file}" if config.tracking.uri else f" output.dir={config.output.dir}"
        print(f"all runs:      nsa-lab ui{store}")


def print_metrics(metrics: Mapping[str, float]) -> None:
    """A line a metric, by name."""
    table = Table("metric", "value", box=None)
    table.columns[1].justify = "right"
    for name, value in sorted(metrics.items()):
        if not name.startswith(HIDDEN):
            table.add_row(name, format_metric(name, value))
    Console(width=100).print(table)


def format_metric(name: str, value: float) -> str:
    """A metric as people read it: shares in per cent, counts in full, the rest to four digits."""
    if any(word in name for word in PERCENT):
        return f"{value:.1%}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def describe_budget(config: ExperimentConfig) -> list[str]:
    """The paper's budget, 2K/(L-1), for the clips that are known and for 128K tokens, and what a reducer leaves."""
    layers = decoder_layers(config.model)
    return [_describe_method(config, layers), *_describe_reducer(config, layers)]


def _clips(config: ExperimentConfig) -> dict[str, tuple[int, int]]:
    """Temporal patches of each kind of clip, or of the longest that data.* allows, and tokens of a patch."""
    from nsa_lab.scale.load import frame_and_clip

    size, longest = frame_and_clip(config)
    return {f"a {name} clip": grid for name, grid in clip_grids(config).items()} or {
        "the longest clip": (longest // size, size)
    }


def _shares(config: ExperimentConfig, layers: int | None, frames: int, size: int) -> list[float] | None:
    """The share of a clip's video tokens that a reducer leaves each of so many layers; None: not known."""
    reducer = config.attention.reducer
    left = None if layers is None else REDUCERS[reducer.kind].left(settings(reducer), layers, frames, size)
    return None if left is None else [count / (frames * size) for count in left]


def _describe_method(config: ExperimentConfig, layers: int | None) -> str:
    from nsa_lab.attention.methods import METHODS

    method, clips = METHODS[config.attention.method], _clips(config)
    found = {what: (frames * size, _shares(config, layers, frames, size)) for what, (frames, size) in clips.items()}
    attended = method.attended(settings(config.attention, "method"))
    if attended is None:
        read = [f"{fmean(s * s for s in shares):.1%} of it for {what}" for what, (_, shares) in found.items() if shares]
        left = f"; after the reducer {', '.join(read)}" if read else ""
        return f"{config.attention.method} attention: {method.reads}{left}"
    size = max(size for _, size in clips.values())
    found["the paper's length"] = PAPER_LENGTH, _shares(config, layers, PAPER_LENGTH // size, size)
    said = ", ".join(
        f"{100 * _ratio(attended, length, shares or [1.0]):.3g}% of dense for {what} ({length:,} tokens)"
        for what, (length, shares) in found.items()
    )
    differ = "; layers differ, see attention.layers" if config.attention.layers else ""
    reduced = ", of the queries and keys that the reducer leaves" if found["the paper's length"][1] else ""
    return f"{attended:,} tokens a query{reduced}; by the paper's 2K/(L-1): {said}{differ}"


def _ratio(attended: int, length: int, shares: Sequence[float]) -> float:
    """As budget/paper_ratio counts it: of a share of the tokens as few queries, each among as few keys."""
    from nsa_lab.attention.budget import paper_ratio

    return fmean(paper_ratio(attended, round(share * length)) * share**2 for share in shares)


def _describe_reducer(config: ExperimentConfig, layers: int | None) -> Iterator[str]:
    """A line on the video tokens that a reducer leaves of each kind of clip."""
    kind, clips = config.attention.reducer.kind, _clips(config)
    for frames, size in dict.fromkeys(clips.values()) if kind != "none" else ():
        if (shares := _shares(config, layers, frames, size)) is None:
            yield f"{kind} leaves fewer video tokens, how many is known in a run (budget/tokens_kept)"
            return
        of = ", ".join(what for what, grid in clips.items() if grid == (frames, size))
        least = f"{shares[-1]:.1%} of the video tokens in the last of {layers} layers"
        yield f"{kind} leaves {least}, {fmean(shares):.1%} on average over all, of {of} ({frames} frames of {size})"


def describe_tasks() -> str:
    """Every task: what it asks, its dials with their defaults, chance, and recorded accuracies."""
    from nsa_lab.tasks import TASKS

    blocks = []
    for name, task in TASKS.items():
        dials = dataclasses.asdict(task.Config())
        dials.pop("enabled")
        shown = " ".join(f"{dial}={value}" for dial, value in dials.items())
        blocks.append(f"{task.describe(name)}\n  dials (tasks.{name}.*): {shown}")
    return "\n\n".join(blocks)
