"""The MLflow run above a sweep's trials, which sweeps on one study share."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import optuna
from rich.console import Console

from nsa_lab import tracking
from nsa_lab.config import ExperimentConfig, to_yaml
from nsa_lab.files import FileLock, write_text
from nsa_lab.runner.parent_run import parent_run, without_passwords
from nsa_lab.search.lock import Lock
from nsa_lab.search.rows import Outcome
from nsa_lab.search.spec import Sweep


@contextmanager
def study_run(
    config: ExperimentConfig, study: optuna.Study, sweep: Sweep, directory: Path, console: Console, alone: Lock
) -> Iterator[tracking.Tracker | None]:
    """Open or continue the parent run, which the study's attribute `tracking_id` names, and close it at the end.

    Sweeps on several machines share the one that the study names. None where another sweep with this folder keeps it.
    """
    keeper = FileLock(directory / "sweep.lock")
    try:
        with ExitStack() as opened:
            with alone():  # no two create it
                kept = keeper.take()
                tracker = opened.enter_context(_opened(config, study, sweep, directory)) if kept else None
            if tracker is None:
                console.print(f"another sweep of {directory} runs; sharing its MLflow run", highlight=False)
            yield tracker
    finally:
        keeper.free()


@contextmanager
def _opened(config: ExperimentConfig, study: optuna.Study, sweep: Sweep, directory: Path) -> Iterator[tracking.Tracker]:
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
        for file in (without_passwords(sweep.path, directory), base):
            tracker.artifact(file)
        yield tracker


def record_outcome(tracker: tracking.Tracker, outcome: Outcome, files: Sequence[Path]) -> None:
    """Record how the study stands."""
    states = ("complete", "pruned", "infeasible", "failed")
    tracker.metrics({f"trials/{s}": outcome.count(s) for s in states}, len(outcome.rows))
    if outcome.best is not None:
        best = {f"best/{name}": value for name, value in outcome.best.values.items()}
        tracker.metrics(best, len(outcome.rows))
        tracker.tags({"best_trial": outcome.best.label, "pareto_size": len(outcome.front)})
    for file in files:
        tracker.artifact(file, file.name if file.is_dir() else "")
