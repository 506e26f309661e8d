"""`nsa-lab tasks check`: is a task fit to tell designs of attention apart?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nsa_lab.attention.branches import BRANCHES
from nsa_lab.comparison.compare import ROWS, compare
from nsa_lab.comparison.plan import trainings
from nsa_lab.comparison.rows import Key, Row, key_of, read_rows
from nsa_lab.comparison.spec import START, TASK_ACCURACY, Comparison, Experiment, Training
from nsa_lab.config import ExperimentConfig
from nsa_lab.config.rules import clip_tokens
from nsa_lab.errors import NsaLabError, nearest
from nsa_lab.evaluation.task_card import BLIND, DENSE, KNOCK_OUT, Facts, Outcome, left_chance_at, markdown, table
from nsa_lab.files import write_csv, write_text, writing
from nsa_lab.runner.job import TRAIN
from nsa_lab.tasks import TASKS, task_settings
from nsa_lab.training.directory import RunDirectory, read_series

SUITE = (Path("experiments/tasks/suite.yaml"), Path("experiments/tasks/suite_dense_text.yaml"))
SUBSETS = (("window",), ("compression", "selection"), ("selection",))
METRIC = "val/accuracy"
CHOOSE = "choose another folder with --out"


def designs() -> dict[str, dict[str, Any]]:
    """What a task is trained with, by name, as settings."""
    subsets = {
        "+".join(kept): {"attention.method": "nsa"} | {f"attention.branches.{b}.enabled": b in kept for b in BRANCHES}
        for kept in SUBSETS
    }
    full = {"attention.method": "dense"}
    return {DENSE: full, BLIND: full | {"data.blind": True}, KNOCK_OUT: {"attention.method": KNOCK_OUT}, **subsets}


def check_tasks(
    names: Sequence[str],
    *,
    suite: Sequence[Path] = SUITE,
    overrides: Sequence[str] = (),
    seeds: int = 3,
    steps: int | None = None,
    conversion: int | None = None,
    workers: int = 1,
    out: Path | None = None,
    command: str = "",
    runner: str = TRAIN,
) -> list[Path]:
    """Train every design with each experiment of `suite`, and write NAME.md and NAME.csv of each task into `out`.

    Each task is trained alone; with `conversion` all are trained together, and each seed's designs go on from one dense
    model that was trained for so many steps. Returns the paths of the NAME.md. `out` is by default where the trainings
    are, {output.dir}/comparisons/suite-... . What is trained already is not trained again. Raises NsaLabError where
    a name is no task (before anything is trained) or a training failed.
    """
    _check_names(names)
    names = list(dict.fromkeys(names))
    if out is not None:  # before anything is trained
        with writing(out, CHOOSE):
            out.mkdir(parents=True, exist_ok=True)
    cards = []
    for group in [names] if conversion else [[name] for name in names]:
        enabled = [f"tasks.{task}.enabled={str(task in group).lower()}" for task in TASKS]
        given = [*enabled, *([] if steps is None else [f"training.steps={steps}"]), *overrides]
        comparison = replace(_comparison(group, suite, seeds, conversion), command=command)
        home = compare(comparison, overrides=given, workers=workers, runner=runner)
        wanted = trainings(comparison, list(comparison.variants), comparison.seeds, given)
        designs_of = [training for training in wanted if training.variant != START]
        rows = read_rows(home / ROWS)
        for name in group:
            cards.append(_write_card(name, group, designs_of, rows, conversion, out or home, command))
    return cards


def _comparison(group: Sequence[str], suite: Sequence[Path], seeds: int, conversion: int | None) -> Comparison:
    start = {"attention.method": DENSE, "training.steps": conversion} if conversion else None
    return Comparison(
        path=suite[0],
        experiments=tuple(replace(Experiment.of(file), start=start) for file in suite),
        variants=designs(),
        references=(DENSE,),
        metrics=dict.fromkeys(dict.fromkeys([METRIC, *(_metric(name, group) for name in group)]), "maximize"),
        seeds=tuple(range(seeds)),
        preset="conversion" if conversion else group[0],
        question=f"Question: {'are' if group[1:] else 'is'} {', '.join(group)} fit to tell designs of attention apart?",
    )


def _metric(name: str, group: Sequence[str]) -> str:
    return f"{TASK_ACCURACY}{name}" if group[1:] else METRIC


def _write_card(
    name: str,
    group: Sequence[str],
    wanted: Sequence[Training],
    rows: Mapping[Key, Row],
    conversion: int | None,
    out: Path,
    command: str,
) -> Path:
    facts, metric = facts_of(name, wanted[0].config), _metric(name, group)
    if conversion:
        regime = (
            f"Conversion: each seed's designs go on from one dense model of {conversion} steps on {', '.join(group)}."
        )
        facts = replace(facts, regime=regime)
    outcomes = [_outcome(training, rows, facts, metric) for training in wanted]
    with writing(out, CHOOSE):
        write_csv(out / f"{name}.csv", table(name, outcomes))
        write_text(out / f"{name}.md", markdown(facts, outcomes, command, _origin(rows[key_of(wanted[0])])))
    return out / f"{name}.md"


def _check_names(names: Sequence[str]) -> None:
    """Raise NsaLabError where one of `names` is no task."""
    for name in names:
        if name not in TASKS:
            raise NsaLabError(f"{name} is no task; {nearest(name, TASKS)}known: {', '.join(TASKS)}")


def facts_of(name: str, config: ExperimentConfig) -> Facts:
    """What the config says of its task `name`."""
    task, own = TASKS[name], task_settings(config.tasks, name)
    turns = task.script(own, 0, np.random.default_rng(0)).turns
    usual = task.Config()
    dials = {key: value for key, value in vars(own).items() if key != "enabled" and value != getattr(usual, key)}
    return Facts(
        name=name,
        summary=task.summary,
        stands_for=task.stands_for,
        question=" ".join(question for question, _ in turns),
        chance=task.chance(own),
        answers=own.val_clips * len(turns),
        tokens=clip_tokens(config)[name],
        dials=", ".join(f"{key} {value}" for key, value in {"frames": own.frames, **dials}.items()),
        subsets=tuple("+".join(kept) for kept in SUBSETS),
    )


def _outcome(training: Training, rows: Mapping[Key, Row], facts: Facts, metric: str) -> Outcome:
    row, steps = rows[key_of(training)], training.config.training.steps
    return Outcome(
        reading=_reading(training.config),
        design=training.variant,
        seed=training.seed,
        accuracy=float(row[metric]),
        steps=steps,
        minutes=steps * float(row["throughput/seconds_per_step"]) / 60,
        left_chance_at=_left_chance_at(training, facts, metric),
        config_hash=row["config_hash"],
    )


def _left_chance_at(training: Training, facts: Facts, metric: str) -> str:
    metrics = RunDirectory(training.directory).metrics
    if not metrics.exists():
        return ""
    return left_chance_at(read_series(metrics).get(metric, {}), facts.chance + facts.noise)


def _reading(config: ExperimentConfig) -> str:
    window = config.attention.text_window
    return "dense text rows" if window is None else f"text rows bound to the last {window} tokens"


def _origin(row: Row) -> str:
    return f"commit {row['commit']}, {row['device']}, {row['threads']} thread, torch {row['torch']}, {row['date']}"
