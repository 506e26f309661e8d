"""The trials of a study as rows, the Pareto set among them, and the one that is recommended."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from nsa_lab.config.identity import ADDED_AS
from nsa_lab.files import write_csv as write_lines
from nsa_lab.search.recovery import original_number, reason_of

KEYS, RATIO = "budget/keys_per_query", "budget/ratio_to_dense"
STATES = ("complete", "reused", "pruned", "infeasible", "failed", "killed", "running", "waiting")
REFERENCE = "reference:"
"""How the study attributes begin that hold what a reference measured."""


@dataclass(frozen=True)
class Row:
    """One trial, or a `reference`, which has no number but this name.

    `state` is one of STATES; a killed trial is one that a later trial retried, and a reused one has the results of an
    earlier trial of the same design. `number` is that of its folder and run: a retry has that of the trial it retries.
    `half` is half the width of the 95% interval of an objective over the seeds.
    """

    number: int
    state: str
    values: dict[str, float]
    params: dict[str, Any]
    directory: str
    retry: int = 0
    reference: str = ""
    reason: str = ""
    seconds: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    base: Mapping[str, Any] = field(default_factory=dict)
    half: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What its folder is called, and its run and its config end in."""
        return self.reference or trial_name(self.number)

    @property
    def label(self) -> str:
        return self.reference or str(self.number)

    @property
    def title(self) -> str:
        """What it is called in a sentence."""
        return self.reference or f"trial {self.number}"

    @property
    def of_dense(self) -> float | None:
        """Keys read over the causal mean of dense attention: more than 1 where branches read the same ones twice."""
        return self.measured(RATIO)

    def measured(self, name: str) -> float | None:
        """An objective or another metric, where the trial reported it."""
        return self.values.get(name, self.metrics.get(name))


@dataclass(frozen=True)
class Outcome:
    """A study at one moment: its trials in Optuna's order, then its references, as `rows`.

    `front` is the Pareto set of all of these (with one objective: the best), recommended first.

    dense: what dense attention spends, for the objectives where that is known.
    """

    study: str
    objectives: dict[str, str]
    trials: list[FrozenTrial]
    rows: list[Row]
    front: list[Row]
    dense: dict[str, float] = field(default_factory=dict)

    @property
    def best(self) -> Row | None:
        return self.front[0] if self.front else None

    @property
    def rule(self) -> str:
        """Which trial is recommended, in words."""
        extreme = {"maximize": "highest", "minimize": "lowest"}
        ends = [f"{extreme[direction]} {name}" for name, direction in self.objectives.items()]
        if len(ends) == 1:
            return f"{ends[0]}; ties: lowest trial number"
        return f"the knee: nearest to {' and '.join(ends)}, in units of best to median trial"

    def label(self, name: str) -> str:
        """An objective with an arrow to its better end."""
        return f"{name} {'↑' if self.objectives[name] == 'maximize' else '↓'}"

    @property
    def references(self) -> list[Row]:
        """The references that were trained."""
        return [row for row in self.rows if row.reference and row.state == "complete"]

    def count(self, state: str) -> int:
        """How many trials ended so."""
        return sum(row.state == state and not row.reference for row in self.rows)


def read_outcome(study: optuna.Study) -> Outcome:
    """The rows of a study, by number."""
    objectives = objectives_of(study)
    trials = study.get_trials(deepcopy=False)
    retried = {t.user_attrs.get("retry_from") for t in trials}
    base = ADDED_AS | study.user_attrs.get("base", {})
    rows = [read_row(t, objectives, killed=t.number in retried, base=base) for t in trials]
    found = {key.removeprefix(REFERENCE): v for key, v in study.user_attrs.items() if key.startswith(REFERENCE)}
    references = [read_reference(name, kept, objectives, base) for name, kept in found.items()]
    candidates = [rows[t.number] for t in study.best_trials if rows[t.number].state == "complete"] + references
    front = [row for row in candidates if not any(_beats(other, row, objectives) for other in candidates)]
    front.sort(key=lambda row: _rank(row, objectives))
    rows += references
    if len(objectives) == 1:
        front = front[:1]
    if len(objectives) > 1 and front:
        complete = [row for row in rows if row.state == "complete" and not row.reference]
        best = _knee(front, complete, objectives)
        front = [best, *(row for row in front if row is not best)]
    return Outcome(study.study_name, objectives, trials, rows, front, _dense(rows, objectives))


def objectives_of(study: optuna.Study) -> dict[str, str]:
    """Metric name -> direction; a study made elsewhere may have no names."""
    names = study.metric_names or [f"objective {i}" for i in range(len(study.directions))]
    return {name: direction.name.lower() for name, direction in zip(names, study.directions, strict=True)}


def read_row(trial: FrozenTrial, objectives: Mapping[str, str], *, killed: bool = False,
             base: Mapping[str, Any] | None = None) -> Row:  # fmt: skip
    attrs = trial.user_attrs
    complete = trial.state == TrialState.COMPLETE
    return Row(
        number=original_number(trial),
        state="killed" if killed else state_of(trial),
        values=dict(zip(objectives, trial.values, strict=True)) if complete else {},
        params=trial.params,
        directory=attrs.get("directory", ""),
        retry=int(attrs.get("life", 0)),
        reason=reason_of(trial),
        seconds=attrs.get("seconds"),
        metrics=attrs.get("metrics", {}),
        overrides=attrs.get("overrides", {}),
        base=base or {},
        half=attrs.get("half", {}),
    )


def read_reference(name: str, kept: Mapping[str, Any], objectives: Mapping[str, str], base: Mapping[str, Any]) -> Row:
    """The row of a reference from what the study keeps of it."""
    metrics = kept["metrics"]
    values = {objective: metrics[objective] for objective in objectives if objective in metrics}
    fields = {key: kept[key] for key in ("directory", "seconds", "metrics", "overrides", "half")}
    state = "complete" if len(values) == len(objectives) else "failed"
    return Row(-1, state, values, {}, reference=name, base=base, **fields)


def trial_name(number: int) -> str:
    """What the folder of a trial is called."""
    return f"trial-{number:04d}"


def write_csv(outcome: Outcome, file: Path) -> None:
    """Every trial with its objectives, parameters and metrics."""
    params = list(dict.fromkeys(name for row in outcome.rows for name in row.params))
    metrics = sorted({name for row in outcome.rows for name in row.metrics} - set(outcome.objectives))
    fixed = ["number", "retry", "state", "pareto", "seconds", "directory", "reason"]
    front = {id(row) for row in outcome.front}
    lines: list[list[Any]] = [[*fixed, *outcome.objectives, *params, *metrics]]
    for row in outcome.rows:
        about = [row.label, row.retry, row.state, id(row) in front, row.seconds, row.directory, row.reason]
        found = ((row.values, outcome.objectives), (row.params, params), (row.metrics, metrics))
        lines.append([*about, *(values.get(name, "") for values, names in found for name in names)])
    write_lines(file, lines)


def state_of(trial: FrozenTrial) -> str:
    """One of STATES; whether it was killed, other trials tell."""
    if "reused" in trial.user_attrs:
        return "reused"
    if trial.state == TrialState.PRUNED:
        return "infeasible" if any(value > 0 for value in trial.constraints.values()) else "pruned"
    return {"FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())


def _knee(front: Sequence[Row], complete: Sequence[Row], objectives: Mapping[str, str]) -> Row:
    """The trial of the front nearest to the point that is best in every objective; the first of equally near ones.

    An objective's unit is the way from its best to its median over complete trials, so that one trial that went astray
    does not make all others alike; where half of the trials are equally best, to the trial farthest from it.
    """
    distance = [0.0] * len(front)
    for name, direction in objectives.items():
        best = (max if direction == "maximize" else min)(row.values[name] for row in front)
        ways = [abs(row.values[name] - best) for row in complete if math.isfinite(row.values[name])]
        unit = statistics.median(ways or [0.0]) or max(ways, default=0.0) or 1.0
        distance = [d + ((row.values[name] - best) / unit) ** 2 for d, row in zip(distance, front, strict=True)]
    return front[distance.index(min(distance))]


def _dense(rows: Sequence[Row], objectives: Mapping[str, str]) -> dict[str, float]:
    """The budget of dense attention on the same clips: what a trial reads over its ratio to dense."""
    found = {RATIO: 1.0}
    for row in rows:
        keys, ratio = row.measured(KEYS), row.measured(RATIO)
        if keys and ratio:
            found |= {KEYS: keys / ratio, f"{KEYS}_with_compressed": keys / ratio}
    return {name: found[name] for name in objectives if name in found}


def _beats(row: Row, other: Row, objectives: Mapping[str, str]) -> bool:
    """Whether `row` is as good as `other` in every objective, and better in one."""
    ours, theirs = _rank(row, objectives)[:-1], _rank(other, objectives)[:-1]
    return ours != theirs and all(a <= b for a, b in zip(ours, theirs, strict=True))


def _rank(row: Row, objectives: Mapping[str, str]) -> tuple[float, ...]:
    signs = [1 if direction == "minimize" else -1 for direction in objectives.values()]
    return (*(sign * row.values[name] for sign, name in zip(signs, objectives, strict=True)), row.number)
