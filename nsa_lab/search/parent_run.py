"""The MLflow run above a sweep's trials, which sweeps on one study share."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
from rich.console import Console

from nsa_lab import tracking
from nsa_lab.config import ExperimentConfig, to_yaml
from nsa_lab.files import write_text
from nsa_lab.runner.parent_run import parent_run
from nsa_lab.runner.recovery import identity, is_alive, is_here
from nsa_lab.search.rows import Outcome
from nsa_lab.search.spec import Sweep


@dataclass
class ParentRun:
    """The parent run of this study; `tracker` is None where another live sweep on this study keeps it."""

    run_id: str | None
    tracker: tracking.Tracker | None

    def report(self, outcome: Outcome, files: Sequence[Path], interrupted: bool) -> None:
        """Record how the study stands, and close the run."""
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
        self.tracker.finish("KILLED" if interrupted else "FINISHED")


@contextmanager
def study_run(
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
    place = [tracking.tracking_uri(config), config.tracking.experiment]
    run_id = study.user_attrs.get("tracking_id") if study.user_attrs.get("tracking_store") == place else None
    tags = {
        "kind": "sweep",
        "study": study.study_name,
        "sampler": sweep.sampler,
        "objectives": ", ".join(f"{direction} {name}" for name, direction in sweep.objectives.items()),
        "mlflow.runName": f"sweep-{study.study_name}",
    }
    with parent_run(config, directory, tags, children=directory, run_id=run_id) as tracker:
        study.set_user_attr("tracking_id", tracker.run_id)
        study.set_user_attr("tracking_store", place)
        base = directory / "base.yaml"
        write_text(base, to_yaml(config))
        for file in (sweep.path, base):
            tracker.artifact(file)
        yield ParentRun(tracker.run_id, tracker)
