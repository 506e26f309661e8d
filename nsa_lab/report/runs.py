"""Runs that nobody but `nsa-lab train` started, as a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nsa_lab.analysis.runs import KEYS, Row, read_run
from nsa_lab.comparison.grid import Grid
from nsa_lab.comparison.sections import format_value
from nsa_lab.comparison.spec import TASK_ACCURACY
from nsa_lab.errors import NsaLabError
from nsa_lab.files import read_json
from nsa_lab.runner.view import number


@dataclass(frozen=True)
class PlainRun:
    """A run with the commit that trained it last."""

    row: Row
    commit: str


def read_plain_run(home: Path) -> PlainRun | None:
    """The run in `home`; None where a comparison or a sweep started it. Raises NsaLabError where it is damaged."""
    remedy = f"train it again with training.resume=false, or remove {home}"
    tags = read_json(home / "tags.json", remedy)
    if "kind" in tags:
        return None
    row = read_run(home, str(home))
    if row.fault:
        raise NsaLabError(f"{home}: {row.fault}; {remedy}")
    origin = read_json(home / "origin.json", remedy)
    return PlainRun(row, str(origin.get("commit") or tags.get("commit", ""))[:12])


def runs_table(runs: Sequence[PlainRun]) -> Grid:
    """A line a run: design, state, steps, validation metrics, budget, commit, and the hash of its config."""
    names = dict.fromkeys(name for run in runs for name in sorted(run.row.metrics) if name.startswith("val/"))
    metrics = [*(name for name in names if not name.startswith(TASK_ACCURACY)), *_tasks(names)]
    head = ["run", "design", "state", "steps", *(name.removeprefix(TASK_ACCURACY) for name in metrics)]
    lines = [[*_beginning(run), *(_value(run.row, name) for name in metrics), *_end(run)] for run in runs]
    return Grid("runs", [*head, "keys per query", "commit", "hash"], lines).filled()


def _tasks(names: Sequence[str] | dict[str, None]) -> list[str]:
    """The tasks' own accuracies, where there are several."""
    tasks = [name for name in names if name.startswith(TASK_ACCURACY)]
    return tasks if len(tasks) > 1 else []


def _beginning(run: PlainRun) -> list[str]:
    row = run.row
    return [Path(row.name).name, row.design, row.state, "" if row.step is None else str(row.step)]


def _value(row: Row, name: str) -> str:
    return format_value(name, row.metrics[name]) if name in row.metrics else ""


def _end(run: PlainRun) -> list[str]:
    return [number(run.row.metrics[KEYS]) if KEYS in run.row.metrics else "", run.commit, run.row.hash]
