"""One trial: suggest a design, train it, tell the study."""

import gc
import json
import math
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from nsa_lab import tracking
from nsa_lab.config import ExperimentConfig, config_hash
from nsa_lab.errors import ConfigError, NsaLabError
from nsa_lab.search.processes import identity
from nsa_lab.search.recovery import original_number
from nsa_lab.search.spec import Sweep, constraint_values, design, suggested

SHOW_EVERY_S = 0.2


@dataclass(frozen=True)
class Job:
    """What a worker needs to run trials of a study. `base` is the base experiment as dotted keys."""

    sweep_file: str
    base: dict[str, Any]
    storage: str
    study: str
    sampler: str
    pruner: str | None
    seed: int
    runner: str
    directory: str
    parent: str | None


@dataclass(frozen=True)
class Report:
    """What a worker tells its sweep. `fatal` is a fault of the sweep file: no trial can succeed."""

    kind: str
    number: int = -1
    step: int = 0
    steps: int = 0
    metrics: Mapping[str, float] | None = None
    message: str = ""
    exhausted: bool = False


class Infeasible(Exception):
    """A design that breaks a rule or a constraint; it is not trained."""


class Fatal(Exception):
    """A fault that every trial of the sweep would meet."""


def run_trial(study: optuna.Study, trial: optuna.Trial, job: Job, sweep: Sweep, runner: Callable[..., Any],
              send: Callable[[Report], None]) -> None:  # fmt: skip
    """Run one trial to its end in the study; raises Fatal after telling the study.

    COMPLETE has its objectives; PRUNED was stopped early or was infeasible; FAIL has its reason in `reason`.
    """
    directory = trial_directory(job, trial)
    trial.set_user_attr("directory", str(directory))
    trial.set_user_attr("worker", identity())
    started = time.monotonic()
    try:
        config = _feasible_design(trial, job, sweep)
        result = _train(config, study, trial, job, sweep, runner, send, directory)
        trial.set_user_attr("seconds", round(time.monotonic() - started, 3))
        trial.set_user_attr("tracking_id", result.tracking_id)
        trial.set_user_attr("metrics", {k: v for k, v in result.metrics.items() if math.isfinite(v)})
        if trial.user_attrs.get("pruned"):
            _end(study, trial, TrialState.PRUNED, f"pruned by {job.pruner}")
            tracking.annotate(directory, {"state": "pruned"})
        else:
            study.tell(trial, _objective_values(sweep, result.metrics))
    except Infeasible as refusal:
        _record_refusal(trial, job, directory, str(refusal))
        _end(study, trial, TrialState.PRUNED, str(refusal))
    except Fatal as fault:
        _end(study, trial, TrialState.FAIL, str(fault))
        raise
    except Exception as error:
        traceback.print_exc()
        _end(study, trial, TrialState.FAIL, _reason(error))
    finally:
        _free_memory()


def trial_directory(job: Job, trial: optuna.Trial) -> Path:
    """A retried trial shares the directory of the one it retries, and so its checkpoint."""
    return Path(job.directory) / f"trial-{original_number(trial):04d}"


def _feasible_design(trial: optuna.Trial, job: Job, sweep: Sweep) -> ExperimentConfig:
    """The trial's config; its constraints are set on the trial either way. Raises Infeasible."""
    name = f"{job.study}-trial-{original_number(trial):04d}"
    try:
        values = suggested(sweep, trial)
    except NsaLabError as error:
        raise Fatal(str(error)) from error
    trial.set_user_attr("overrides", json.loads(json.dumps(values)))
    try:
        config = design(job.base, values, name)
    except ConfigError as error:
        trial.set_constraint("config", float(len(error.problems)))
        raise Infeasible("; ".join(str(problem) for problem in error.problems)) from error
    trial.set_constraint("config", 0.0)
    trial.set_user_attr("config_hash", config_hash(config))
    try:
        limits = constraint_values(sweep, config)
    except NsaLabError as error:
        raise Fatal(str(error)) from error
    for key, value in limits.items():
        trial.set_constraint(key, value)
    broken = [f"constraint {key} is {value:g}" for key, value in limits.items() if value > 0]
    if broken:
        raise Infeasible("; ".join(broken))
    return config


def _train(config: ExperimentConfig, study: optuna.Study, trial: optuna.Trial, job: Job, sweep: Sweep,
           runner: Callable[..., Any], send: Callable[[Report], None], directory: Path) -> Any:  # fmt: skip
    objective = next(iter(sweep.objectives))
    prunes = job.pruner is not None and len(sweep.objectives) == 1
    last_shown = 0.0

    def on_progress(progress: Any) -> bool:
        nonlocal last_shown
        if progress.validated or time.monotonic() - last_shown > SHOW_EVERY_S:
            last_shown = time.monotonic()
            send(Report("progress", trial.number, progress.step, progress.steps, dict(progress.metrics)))
        if not (prunes and progress.validated and objective in progress.metrics):
            return False
        trial.report(progress.metrics[objective], progress.step)
        if trial.should_prune():
            trial.set_user_attr("pruned", progress.step)
            return True
        return False

    return runner(
        config,
        directory=directory,
        parent=job.parent,
        tags=_tags(trial, job),
        on_progress=on_progress,
        progress_bar=False,
    )


def _tags(trial: optuna.Trial, job: Job) -> dict[str, str]:
    number = original_number(trial)
    return {
        "kind": "trial",
        "study": job.study,
        "trial": str(number),
        "sampler": job.sampler,
        "mlflow.runName": f"trial-{number:04d}",
    }


def _objective_values(sweep: Sweep, metrics: Mapping[str, float]) -> list[float]:
    values = []
    for name in sweep.objectives:
        if name not in metrics:
            known = ", ".join(sorted(metrics))
            raise Fatal(f"{sweep.path}: objective {name!r} was not reported; a run reports {known}")
        if not math.isfinite(metrics[name]):
            raise NsaLabError(f"objective {name} is {metrics[name]}")
        values.append(float(metrics[name]))
    return values


def _record_refusal(trial: optuna.Trial, job: Job, directory: Path, reason: str) -> None:
    """An MLflow run for a design that was not trained, so that filters on `state` find it."""
    base = design(job.base, {}, job.study)
    tags = {**_tags(trial, job), "state": "infeasible", "reason": reason[:500]}
    tracker = tracking.Tracker.open(base, directory, tags=tags, parent=job.parent, describe=False)
    tracker.params(trial.params)
    tracker.finish("FINISHED")
    trial.set_user_attr("tracking_id", tracker.run_id)


def _end(study: optuna.Study, trial: optuna.Trial, state: TrialState, reason: str) -> None:
    trial.set_user_attr("reason", reason)
    study.tell(trial, state=state)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    first = lines[0] if lines else "no message"
    return first if isinstance(error, NsaLabError) else f"{type(error).__name__}: {first}"


def _free_memory() -> None:
    """Give back what a trial held, most of all on a GPU after it ran out of memory."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
