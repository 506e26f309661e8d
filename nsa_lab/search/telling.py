"""What the study, the table on the screen and MLflow are told of designs: how their trainings ended, or why none was.

In the study a trial is COMPLETE with its objectives, PRUNED when it was stopped early or infeasible, or FAIL with its
`reason`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from nsa_lab import tracking
from nsa_lab.runner.job import End
from nsa_lab.runner.view import View
from nsa_lab.search.recovery import original_number
from nsa_lab.search.rows import REFERENCE, read_reference, read_row, trial_name
from nsa_lab.search.seeds import halves, merged
from nsa_lab.search.spec import Sweep, design
from nsa_lab.search.view import shown, words


@dataclass(frozen=True)
class Telling:
    """Tells of the designs of `sweep` in the study's folder `directory`; `parent` is the study's run in MLflow."""

    study: optuna.Study
    storage: Any
    sweep: Sweep
    base: Mapping[str, Any]
    directory: Path
    parent: str | None
    view: View

    def unreported(self, metrics: Mapping[str, float]) -> str | None:
        """What is wrong where an objective is none of a training's metrics."""
        for name in self.sweep.objectives:
            if name not in metrics:
                known = ", ".join(sorted(metrics))
                return f"{self.sweep.path}: objective {name!r} was not reported; a run reports {known}"
        return None

    def measured(self, name: str, trial: optuna.Trial | None, ends: Sequence[End], home: Path) -> str | None:
        """Record what a design measured, over all its seeds; `trial` is None of the reference `name`.

        home: the folder of the last job. Returns the reason where the trial failed all the same.
        """
        end = merged(ends)
        metrics = {k: v for k, v in end.metrics.items() if math.isfinite(v)}
        found = {
            "seconds": None if end.seconds is None else round(end.seconds, 3),
            "tracking_id": end.tracking_id,
            "metrics": metrics,
            "half": halves(ends, self.sweep.objectives.keys() & metrics),
        }
        if trial is None:
            place = {"directory": str(self.directory / name), "overrides": self.sweep.references[name]}
            self.study.set_user_attr(f"{REFERENCE}{name}", found | place)
            self.view.finished(shown(read_reference(name, found | place, self.sweep.objectives, self.base)))
            return None
        for key, value in found.items():
            trial.set_user_attr(key, value)
        if trial.user_attrs.get("pruned"):
            tracking.annotate(home, {"state": "pruned"})
            return self.end(trial, TrialState.PRUNED, f"pruned by {self.sweep.pruner}")
        for objective in self.sweep.objectives:
            if objective not in metrics:
                return self.end(trial, TrialState.FAIL, f"objective {objective} is {end.metrics[objective]}")
        values = [float(metrics[objective]) for objective in self.sweep.objectives]
        return self.end(trial, TrialState.COMPLETE, values=values)

    def reused(self, trial: optuna.Trial, twin: FrozenTrial) -> None:
        """Give a trial what an earlier one of its design measured. One that still trains has nothing to give."""
        for key in ("directory", "metrics", "tracking_id", "half"):
            if key in twin.user_attrs:
                trial.set_user_attr(key, twin.user_attrs[key])
        trial.set_user_attr("reused", original_number(twin))
        state = TrialState.FAIL if twin.state == TrialState.RUNNING else twin.state
        self.end(trial, state, f"the design of trial {original_number(twin)}", twin.values)

    def refused(self, trial: optuna.Trial, directory: Path, reason: str) -> None:
        """An MLflow run for a design that is not trained, so that filters on `state` find it."""
        base = design(self.base, {}, self.study.study_name)
        tags = {**self.tags(trial), "state": "infeasible", "reason": reason[:500]}
        with tracking.Tracker.open(base, directory, tags=tags, parent=self.parent, describe=False) as tracker:
            tracker.params(trial.params)
            tracker.finish("KILLED")
        trial.set_user_attr("tracking_id", tracker.run_id)
        self.end(trial, TrialState.PRUNED, reason)

    def end(self, trial: optuna.Trial, state: TrialState, reason: str = "", values: Any = None) -> str | None:
        """Tell the study and show it; the reason where the trial failed."""
        if reason:
            trial.set_user_attr("reason", reason)
        trial.study.tell(trial, values, state=state)
        self.view.finished(shown(read_row(self.frozen(trial), self.sweep.objectives)))
        return reason if state == TrialState.FAIL else None

    def tags(self, trial: optuna.Trial) -> dict[str, str]:
        """The tags of a trial's run in MLflow."""
        number = original_number(trial)
        tags = {"kind": "trial", "study": self.study.study_name, "sampler": self.sweep.sampler, "trial": str(number)}
        if retries := trial.user_attrs.get("life"):
            tags["retry"] = str(retries)
        name = f"{self.study.study_name}-{trial_name(number)} {words(trial.params)}"
        return tags | {"mlflow.runName": name[:200].strip()}

    def frozen(self, trial: optuna.Trial | FrozenTrial) -> FrozenTrial:
        """The trial as the study knows it now."""
        found: FrozenTrial = self.storage.get_trial(trial._trial_id)
        return found
