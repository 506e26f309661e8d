"""Trials as jobs: ask the study for a design, hand it out, tell the study how its training ended."""

import json
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from nsa_lab import tracking
from nsa_lab.config import ExperimentConfig, config_hash, to_dict
from nsa_lab.errors import ConfigError, NsaLabError
from nsa_lab.runner.job import TRAIN, End, Job, Progress
from nsa_lab.runner.recovery import identity
from nsa_lab.runner.view import View
from nsa_lab.search.recovery import HEARTBEAT_S, beat, next_trial, original_number, reason_of, retry
from nsa_lab.search.rows import read_row
from nsa_lab.search.samplers import build_pruner, build_sampler
from nsa_lab.search.spec import Sweep, constraint_values, design, suggested
from nsa_lab.search.view import shown


class Infeasible(Exception):
    """A design that breaks a rule or a constraint; it is not trained."""


@dataclass
class Trials:
    """A pool's source: hands out `left` more trials of `study`. One trial that ends, in whatever state, is one less.

    `base` is the base experiment as dotted keys, `owner` the process that all of this runs in. In the study a trial
    is COMPLETE with its objectives, PRUNED when it was stopped early or infeasible, or FAIL with its `reason`.
    """

    study: optuna.Study
    storage: Any
    sweep: Sweep
    base: Mapping[str, Any]
    seed: int
    directory: Path
    parent: str | None
    view: View
    left: int
    run: str = TRAIN
    owner: Mapping[str, Any] = field(default_factory=identity)
    flying: dict[str, optuna.Trial] = field(default_factory=dict)
    last_beat: float = field(default_factory=time.monotonic)

    @property
    def prunes(self) -> bool:
        return self.sweep.pruner is not None and len(self.sweep.objectives) == 1

    def take(self, worker: Mapping[str, Any]) -> Job | None:
        """The next feasible design; the study is told of those before. Raises NsaLabError on a faulty sweep file."""
        while self.left > 0:
            self.left -= 1
            trial = self._ask()
            directory = self.directory / f"trial-{original_number(trial):04d}"
            trial.set_user_attr("directory", str(directory))
            trial.set_user_attr("worker", dict(worker))
            try:
                config = self._design(trial)
            except Infeasible as refusal:
                self._refuse(trial, directory, str(refusal))
            except NsaLabError as fault:
                self._end(trial, TrialState.FAIL, str(fault))
                raise
            else:
                name, tags = f"trial-{trial.number:04d}", self._tags(trial)
                self.flying[name] = trial
                return Job(name, to_dict(config), str(directory), self.run, tags, self.parent, asks=self.prunes)
        return None

    def heard(self, job: Job, progress: Progress) -> bool:
        """Whether the pruner ends the trial, or another host has taken it over."""
        trial, objective = self.flying[job.name], next(iter(self.sweep.objectives))
        if not (job.asks and progress.validated and objective in progress.metrics):
            return False
        if self._frozen(trial).state.is_finished():
            return True
        trial.report(progress.metrics[objective], progress.step)
        if not trial.should_prune():
            return False
        trial.set_user_attr("pruned", progress.step)
        return True

    def ended(self, job: Job, end: End) -> str | None:
        """Tell the study. Raises NsaLabError where an objective was not reported, for no other trial will."""
        trial = self.flying.pop(job.name)
        if self._frozen(trial).state.is_finished():
            self.view.say(f"{job.name}: this host was silent so long that another queued it again")
            return None
        if end.fault is not None:
            return self._end(trial, TrialState.FAIL, end.fault)
        trial.set_user_attr("seconds", round(end.seconds, 3))
        trial.set_user_attr("tracking_id", end.tracking_id)
        trial.set_user_attr("metrics", {k: v for k, v in end.metrics.items() if math.isfinite(v)})
        if trial.user_attrs.get("pruned"):
            tracking.annotate(Path(job.directory), {"state": "pruned"})
            return self._end(trial, TrialState.PRUNED, f"pruned by {self.sweep.pruner}")
        for name in self.sweep.objectives:
            if name not in end.metrics:
                known = ", ".join(sorted(end.metrics))
                fault = f"{self.sweep.path}: objective {name!r} was not reported; a run reports {known}"
                self._end(trial, TrialState.FAIL, fault)
                raise NsaLabError(fault)
            if not math.isfinite(end.metrics[name]):
                return self._end(trial, TrialState.FAIL, f"objective {name} is {end.metrics[name]}")
        values = [float(end.metrics[name]) for name in self.sweep.objectives]
        return self._end(trial, TrialState.COMPLETE, values=values)

    def died(self, job: Job, reason: str) -> str | None:
        trial = self._frozen(self.flying.pop(job.name))
        if trial.state.is_finished() or retry(self.study, trial, reason, self.owner):
            self.left += not trial.state.is_finished()
            return None
        trial = self._frozen(trial)
        self.view.finished(shown(read_row(trial, self.sweep.objectives)))
        return reason_of(trial)

    def interrupted(self, job: Job) -> None:
        """Queue the trial again, which does not count as a retry."""
        trial = self._frozen(self.flying.pop(job.name))
        if not trial.state.is_finished():
            retry(self.study, trial, "interrupted", self.owner, counts=False)

    def tick(self, jobs: Sequence[Job]) -> None:
        """Tell other hosts now and then which trials are alive."""
        if time.monotonic() - self.last_beat > HEARTBEAT_S:
            self.last_beat = time.monotonic()
            for job in jobs:
                beat(self.storage, self.flying[job.name])

    def _ask(self) -> optuna.Trial:
        """A trial whose draws follow from seed and number alone: its sampler, so its study, are its own."""
        asked = next_trial(self.study, self.owner)
        beat(self.storage, asked)
        study = optuna.load_study(
            study_name=self.study.study_name,
            storage=self.storage,
            sampler=build_sampler(self.sweep.sampler, (self.seed * 1_000_003 + asked.number) % 2**32),
            pruner=build_pruner(self.sweep.pruner if self.prunes else None),
        )
        study.stop = self._stop
        return optuna.Trial(study, asked._trial_id)

    def _stop(self) -> None:
        """What the brute-force sampler calls when no design is left. Optuna's own is for Optuna's own loop."""
        if self.left:
            self.view.say("every design of the space has been tried")
            self.left = 0

    def _design(self, trial: optuna.Trial) -> ExperimentConfig:
        """The trial's config; its constraints are set on the trial either way. Raises Infeasible."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the study's first probes have given them, once and for all
            values = suggested(self.sweep, trial)
        trial.set_user_attr("overrides", json.loads(json.dumps(values)))
        try:
            config = design(self.base, values, f"{self.study.study_name}-trial-{original_number(trial):04d}")
        except ConfigError as error:
            trial.set_constraint("config", float(len(error.problems)))
            raise Infeasible("; ".join(str(problem) for problem in error.problems)) from error
        trial.set_constraint("config", 0.0)
        trial.set_user_attr("config_hash", config_hash(config))
        limits = constraint_values(self.sweep, config)
        for key, value in limits.items():
            trial.set_constraint(key, value)
        broken = [f"constraint {key} is {value:g}" for key, value in limits.items() if value > 0]
        if broken:
            raise Infeasible("; ".join(broken))
        return config

    def _tags(self, trial: optuna.Trial) -> dict[str, str]:
        number = original_number(trial)
        tags = {"kind": "trial", "study": self.study.study_name, "sampler": self.sweep.sampler}
        return tags | {"trial": str(number), "mlflow.runName": f"trial-{number:04d}"}

    def _refuse(self, trial: optuna.Trial, directory: Path, reason: str) -> None:
        """An MLflow run for a design that is not trained, so that filters on `state` find it."""
        base = design(self.base, {}, self.study.study_name)
        tags = {**self._tags(trial), "state": "infeasible", "reason": reason[:500]}
        with tracking.Tracker.open(base, directory, tags=tags, parent=self.parent, describe=False) as tracker:
            tracker.params(trial.params)
        trial.set_user_attr("tracking_id", tracker.run_id)
        self._end(trial, TrialState.PRUNED, reason)

    def _end(self, trial: optuna.Trial, state: TrialState, reason: str = "", values: Any = None) -> str | None:
        """Tell the study and show it; the reason where the trial failed."""
        if reason:
            trial.set_user_attr("reason", reason)
        trial.study.tell(trial, values, state=state)
        self.view.finished(shown(read_row(self._frozen(trial), self.sweep.objectives)))
        return reason if state == TrialState.FAIL else None

    def _frozen(self, trial: optuna.Trial | FrozenTrial) -> FrozenTrial:
        return self.storage.get_trial(trial._trial_id)
