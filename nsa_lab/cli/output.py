"""What the command line prints."""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from nsa_lab.baselines import REDUCERS
from nsa_lab.config import ExperimentConfig
from nsa_lab.config.rules import clip_tokens
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
    table = Table("metric", "value", box=None)
    table.columns[1].justify = "right"
    for name, value in sorted(result.metrics.items()):
        if not name.startswith(HIDDEN):
            table.add_row(name, format_metric(name, value))
    Console(width=100).print(table)
    print(f"\nrun directory: {result.directory}")
    if config.tracking.enabled:
        store = f" {config_file}" if config.tracking.uri else f" output.dir={config.output.dir}"
        print(f"all runs:      nsa-lab ui{store}")


def format_metric(name: str, value: float) -> str:
    """A metric as people read it: shares in per cent, counts in full, the rest to four digits."""
    if any(word in name for word in PERCENT):
        return f"{value:.1%}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def describe_budget(config: ExperimentConfig) -> list[str]:
    """The paper's budget, 2K/(L-1), for the clips of each task and for 128K tokens, and what a reducer leaves of it."""
    layers = decoder_layers(config.model)
    return [_describe_method(config, _shares(config, layers) or [1.0]), *describe_reducer(config, layers)]


def _shares(config: ExperimentConfig, layers: int | None) -> list[float] | None:
    reducer = config.attention.reducer
    return None if layers is None else REDUCERS[reducer.kind].shares(settings(reducer), layers)


def _describe_method(config: ExperimentConfig, shares: Sequence[float]) -> str:
    from nsa_lab.attention.methods import METHODS

    method = METHODS[config.attention.method]
    attended = method.attended(settings(config.attention, "method"))
    if attended is None:
        left = "" if set(shares) == {1.0} else f", {fmean(s * s for s in shares):.1%} of it after the reducer"
        return f"{config.attention.method} attention: {method.reads}{left}"
    lengths = {f"a {name} clip": tokens for name, tokens in clip_tokens(config).items()}
    said = ", ".join(
        f"{100 * _ratio(attended, length, shares):.3g}% of dense for {what} ({length:,} tokens)"
        for what, length in {**lengths, "the paper's length": PAPER_LENGTH}.items()
    )
    layers = "; layers differ, see attention.layers" if config.attention.layers else ""
    reduced = ", of the queries and keys that the reducer leaves" * (set(shares) != {1.0})
    return f"{attended:,} tokens a query{reduced}: {said}{layers}"


def _ratio(attended: int, length: int, shares: Sequence[float]) -> float:
    """As budget/paper_ratio counts it: of a share of the tokens as few queries, each among as few keys."""
    from nsa_lab.attention.budget import paper_ratio

    return fmean(paper_ratio(attended, round(share * length)) * share**2 for share in shares)


def describe_reducer(config: ExperimentConfig, layers: int | None) -> Iterator[str]:
    """A line on the video tokens that a reducer leaves a model of so many decoder layers; None: not known."""
    reducer, shares = config.attention.reducer, _shares(config, layers)
    if reducer.kind != "none" and shares is None:
        yield f"{reducer.kind} leaves fewer video tokens, how many is known in a run (budget/tokens_kept)"
    elif shares is not None:
        least = f"{shares[-1]:.1%} of the video tokens in the last of {layers} layers"
        yield f"{reducer.kind} leaves {least}, {fmean(shares):.1%} on average over all; a frame keeps whole tokens"


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
