"""The MLflow run above a sweep's trials."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from rich.console import Console

from nsa_lab import tracking
from nsa_lab.config import ExperimentConfig, to_yaml
from nsa_lab.search.processes import identity, is_alive, is_here
from nsa_lab.search.rows import Outcome
from nsa_lab.search.spec import Sweep


@dataclass
class ParentRun:
    """The parent run of this study; `tracker` is None where another live sweep on this study keeps it."""

    run_id: str | None
    tracker: tracking.Tracker | None
    status: tracking.Status = "FAILED"

    def report(self, outcome: Outcome, files: Sequence[Path], interrupted: bool) -> None:
        """Record how the study stands."""
        self.status = "KILLED" if interrupted else "FINISHED"
        if self.tracker is None:
            return
        states = ("complete", "pruned", "infeasible", "failed")
        self.tracker.metrics({f"trials/{s}": outcome.count(s) for s in states}, len(outcome.rows))
        if outcome.best is not None:
            best = {f"best/{name}": value for name, value in outcome.best.values.items()}
            self.tracker.metrics(best, len(outcome.rows))
            self.tracker.tags({"best_trial": outcome.best.number, "pareto_size": len(outcome.front)})
        for file in files:
            self.tracker.artifact(file, file.name if file.is_dir() else "")


@contextmanager
def open_parent_run(
    config: ExperimentConfig, study: optuna.Study, sweep: Sweep, directory: Path, console: Console
) -> Iterator[ParentRun]:
    """Open or continue the parent run, and close it at the end with all trials' records sent.

    The run that the study names is continued, so that sweeps on several machines share one.
    """
    keeper = study.user_attrs.get("keeper")
    if keeper and keeper != identity() and is_here(keeper) and is_alive(keeper):
        console.print(f"another sweep (pid {keeper['pid']}) runs on this study; sharing it", highlight=False)
        yield ParentRun(study.user_attrs.get("tracking_id"), None)
        return
    study.set_user_attr("keeper", identity())
    run_id = study.user_attrs.get("tracking_id") if _same_store(study, config) else None
    tracker = tracking.Tracker.open(config, directory, tags=_tags(study, sweep), run_id=run_id, describe=False)
    run = ParentRun(tracker.run_id, tracker)
    try:
        study.set_user_attr("tracking_id", tracker.run_id)
        study.set_user_attr("tracking_store", _store(config))
        tracker.artifact(sweep.path)
        base = directory / "base.yaml"
        base.write_text(to_yaml(config))
        tracker.artifact(base)
        yield run
    finally:
        tracker.finish(run.status)
        if config.tracking.enabled:
            tracking.push(directory)


def _tags(study: optuna.Study, sweep: Sweep) -> dict[str, Any]:
    objectives = ", ".join(f"{direction} {name}" for name, direction in sweep.objectives.items())
    return {
        "kind": "sweep",
        "study": study.study_name,
        "sampler": sweep.sampler,
        "objectives": objectives,
        "mlflow.runName": f"sweep-{study.study_name}",
        "state": "running",
    }


def _store(config: ExperimentConfig) -> list[str]:
    return [tracking.tracking_uri(config), config.tracking.experiment]


def _same_store(study: optuna.Study, config: ExperimentConfig) -> bool:
    return study.user_attrs.get("tracking_store") == _store(config)
