"""`nsa-lab tasks check`: is a task fit to tell designs of attention apart?"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nsa_lab.attention.branches import BRANCHES
from nsa_lab.comparison.compare import ROWS, compare
from nsa_lab.comparison.plan import trainings
from nsa_lab.comparison.rows import Key, Row, key_of, read_rows
from nsa_lab.comparison.spec import Comparison, Experiment, Training
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


def designs() -> dict[str, dict[str, Any]]:
    """What a task is trained with, by name, as settings."""
    subsets = {
        "+".join(kept): {"attention.method": "nsa"} | {f"attention.branches.{b}.enabled": b in kept for b in BRANCHES}
        for kept in SUBSETS
    }
    full = {"attention.method": "dense"}
    return {DENSE: full, BLIND: full | {"data.blind": True}, KNOCK_OUT: {"attention.method": KNOCK_OUT}, **subsets}


def check_task(
    name: str,
    *,
    suite: Sequence[Path] = SUITE,
    overrides: Sequence[str] = (),
    seeds: int = 3,
    steps: int | None = None,
    workers: int = 1,
    out: Path | None = None,
    command: str = "",
    runner: str = TRAIN,
) -> Path:
    """Train every design on the task `name` with each experiment of `suite`, and write NAME.md and NAME.csv into `out`.

    Returns the path of NAME.md. `out` is by default where the trainings are, {output.dir}/comparisons/suite-NAME. What
    is trained already is not trained again. Raises NsaLabError where `name` is no task or a training failed.
    """
    check_names([name])
    alone = [f"tasks.{task}.enabled={str(task == name).lower()}" for task in TASKS]
    given = [*alone, *([] if steps is None else [f"training.steps={steps}"]), *overrides]
    comparison = Comparison(
        path=suite[0],
        experiments=tuple(map(Experiment.of, suite)),
        variants=designs(),
        references=(DENSE,),
        metrics={METRIC: "maximize"},
        seeds=tuple(range(seeds)),
        preset=name,
        question=f"Question: is {name} fit to tell designs of attention apart?",
        command=command,
    )
    home = compare(comparison, overrides=given, workers=workers, runner=runner)
    wanted = trainings(comparison, list(comparison.variants), comparison.seeds, given)
    facts, rows = facts_of(name, wanted[0].config), read_rows(home / ROWS)
    outcomes = [_outcome(training, rows, facts) for training in wanted]
    card, out = f"{name}.md", out or home
    with writing(out, "choose another folder with --out"):
        out.mkdir(parents=True, exist_ok=True)
        write_csv(out / f"{name}.csv", table(name, outcomes))
        write_text(out / card, markdown(facts, outcomes, command, _origin(rows[key_of(wanted[0])])))
    return out / card


def check_names(names: Sequence[str]) -> None:
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


def _outcome(training: Training, rows: Mapping[Key, Row], facts: Facts) -> Outcome:
    row, steps = rows[key_of(training)], training.config.training.steps
    return Outcome(
        reading=_reading(training.config),
        design=training.variant,
        seed=training.seed,
        accuracy=float(row[METRIC]),
        steps=steps,
        minutes=steps * float(row["throughput/seconds_per_step"]) / 60,
        left_chance_at=_left_chance_at(training, facts),
        config_hash=row["config_hash"],
    )


def _left_chance_at(training: Training, facts: Facts) -> str:
    metrics = RunDirectory(training.directory).metrics
    if not metrics.exists():
        return ""
    return left_chance_at(read_series(metrics).get(METRIC, {}), facts.chance + facts.noise)


def _reading(config: ExperimentConfig) -> str:
    window = config.attention.text_window
    return "dense text rows" if window is None else f"text rows bound to the last {window} tokens"


def _origin(row: Row) -> str:
    return f"commit {row['commit']}, {row['device']}, {row['threads']} thread, torch {row['torch']}, {row['date']}"
