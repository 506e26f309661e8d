"""Trials as jobs: ask the study for a design, hand it out, tell the study how its training ended."""

import math
import time
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from nsa_lab import tracking
from nsa_lab.config import ExperimentConfig, config_hash
from nsa_lab.errors import ConfigError, NsaLabError
from nsa_lab.runner.job import TRAIN, End, Job, Progress
from nsa_lab.runner.recovery import MAX_RETRIES, Lives, identity
from nsa_lab.runner.view import View
from nsa_lab.search.lock import Lock
from nsa_lab.search.recovery import (
    HEARTBEAT_S,
    beat,
    next_trial,
    original_number,
    queued_for,
    reason_of,
    recover,
    retry,
)
from nsa_lab.search.rows import REFERENCE, read_reference, read_row, trial_name
from nsa_lab.search.samplers import build_pruner, build_sampler
from nsa_lab.search.seeds import halves, jobs_of, merged
from nsa_lab.search.shared import (
    claim,
    elsewhere,
    hand_back,
    hand_back_unheard,
    is_claimed,
    remaining,
    renew,
    taken,
    twin_of,
)
from nsa_lab.search.spec import Sweep, constraint_values, design, suggested
from nsa_lab.search.start import Start
from nsa_lab.search.view import shown, words

BARREN = 100
"""Designs in a row that need or allow no training, after which the space is taken to be searched out."""
STUBBORN = 5
"""Such designs in a row after which the next is drawn at random: TPE goes on proposing what was best."""
LOOK_S = 5.0
"""How often a sweep that has nothing to train looks whether other machines have left it something."""


class Infeasible(Exception):
    """A design that breaks a rule or a constraint; it is not trained."""


@dataclass
class Flight:
    """A design in training: a trial, or a reference by its name; and how its jobs, one a seed, ended so far."""

    name: str
    trial: optuna.Trial | None
    ends: list[End] = field(default_factory=list)
    over: bool = False


@dataclass(frozen=True)
class Drawn:
    """A design handed out as `trial`: its config, or why it is infeasible (`refusal`); `twin` is the earlier trial of
    the same design, which makes a training needless."""

    trial: optuna.Trial
    config: ExperimentConfig | None = None
    refusal: str = ""
    twin: FrozenTrial | None = None


@dataclass
class Trials:
    """A pool's source: hands out the `references`, then `trials` more trials of `study`, each with `seeds` seeds.

    A trial that needs no training, because its design was trained before or is infeasible, is none of these.
    With a `total` it hands out trials until all sweeps on the study have handed out that many, and is not through
    before these have ended: what a dead one leaves is trained here. `alone` holds off other sweeps on the study.
    Every design starts from the run of its seed that `start` names, where it is given.
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
    trials: int
    run: str = TRAIN
    seeds: int = 1
    references: deque[str] = field(default_factory=deque)
    start: Start | None = None
    total: int | None = None
    alone: Lock = nullcontext
    owner: Mapping[str, Any] = field(default_factory=identity)
    waiting: deque[Job] = field(default_factory=deque)
    flying: dict[str, Flight] = field(default_factory=dict)
    lives: Lives = field(default_factory=Lives)
    last_beat: float = field(default_factory=time.monotonic)
    last_look: float = field(default_factory=time.monotonic)
    claimed: list[str] = field(default_factory=list)
    elsewhere: int = 0
    closed: bool = False
    waits: bool = False

    def __post_init__(self) -> None:
        if self.total is not None:
            self._count()

    @property
    def left(self) -> int:
        away = 0 if self.total is None else self.elsewhere + len(self.claimed)
        return self.trials + len(self.references) + len(self.waiting) + away

    @property
    def prunes(self) -> bool:
        return self.sweep.pruner is not None and len(self.sweep.objectives) == 1 and self.seeds == 1

    def take(self, worker: Mapping[str, Any]) -> Job | None:
        """The next job; the study is told of designs that need none. Raises NsaLabError on a faulty sweep file."""
        if self.waiting:
            return self.waiting.popleft()
        while self.references:
            name = self.references.popleft()
            with self.alone():
                mine = claim(self.study, name, self.owner)
            if mine:
                return self._reference(name)
            self.claimed.append(name)
            self.view.total -= 1
        barren = 0
        while self.trials > 0 and barren < BARREN:
            with self.alone():
                drawn = self._draw(barren, worker)
            if drawn is None:
                return None
            trial, directory = drawn.trial, Path(drawn.trial.user_attrs["directory"])
            if drawn.config is None:
                self._refuse(trial, directory, drawn.refusal)
            elif drawn.twin is not None:
                self._reuse(trial, drawn.twin)
            else:
                self.trials -= 1
                return self._start(Flight(directory.name, trial), drawn.config, directory, self._tags(trial))
            barren += 1
            self.view.total += 1
        if barren == BARREN:
            self._close(f"{BARREN} designs in a row were trained before or infeasible: widen the space of suggest")
        return None

    def heard(self, job: Job, progress: Progress) -> bool:
        """Whether the pruner ends the trial, or another host has taken it over."""
        trial, objective = self.flying[job.name].trial, next(iter(self.sweep.objectives))
        if not (trial and job.asks and progress.validated and objective in progress.metrics):
            return False
        if self._frozen(trial).state.is_finished():
            return True
        trial.report(progress.metrics[objective], progress.step)
        if not trial.should_prune():
            return False
        trial.set_user_attr("pruned", progress.step)
        return True

    def ended(self, job: Job, end: End) -> str | None:
        """Tell the study once every seed has ended. Raises NsaLabError where an objective was not reported."""
        flight = self.flying.pop(job.name)
        if flight.over:
            return None
        if flight.trial and self._frozen(flight.trial).state.is_finished():
            flight.over = True
            self.view.say(f"{job.name}: this host was silent so long that another queued it again")
            return None
        if end.fault is not None:
            return self._fail(flight, end.fault)
        flight.ends.append(end)
        if len(flight.ends) < self.seeds:
            return None
        return self._tell(flight, job, merged(flight.ends))

    def died(self, job: Job, reason: str) -> str | None:
        flight = self.flying.pop(job.name)
        if flight.over:
            return None
        if flight.trial is None or self.seeds > 1:
            if self.lives.used_up(job.directory):
                return self._fail(flight, f"{reason}, after {MAX_RETRIES} retries")
            self.flying[job.name] = flight
            self.waiting.appendleft(job)
            return None
        trial = self._frozen(flight.trial)
        if trial.state.is_finished() or retry(self.study, trial, reason, self.owner):
            self.trials += not trial.state.is_finished()
            return None
        trial = self._frozen(trial)
        self.view.finished(shown(read_row(trial, self.sweep.objectives)))
        return reason_of(trial)

    def interrupted(self, job: Job) -> None:
        """Queue the trial again, which does not count as a retry."""
        if flight := self.flying.pop(job.name, None):
            self._queue_again(flight)

    def tick(self, jobs: Sequence[Job]) -> None:
        """Tell other machines now and then which trials are alive, and take over those of one that died."""
        now = time.monotonic()
        beats = now - self.last_beat > HEARTBEAT_S
        if beats:
            self.last_beat = now
            for job in jobs:
                flight = self.flying[job.name]
                if flight.trial is None:
                    renew(self.study, flight.name, self.owner)
                else:
                    beat(self.storage, flight.trial)
        if beats or (not jobs and self.left and now - self.last_look > LOOK_S):
            self.last_look = now
            self._look(idle=not jobs)

    def _look(self, idle: bool) -> None:
        """See what other sweeps on the study have done since, and left undone."""
        with self.alone():
            self._hand_back_unheard()
            known = queued_for(self.study, self.owner)
            found = recover(self.study, self.storage, self.owner) - known
        if found:
            self.view.say(f"{found} trials of a sweep that is gone are queued again")
        known = self.study.user_attrs
        claimed = [name for name in self.claimed if f"{REFERENCE}{name}" not in known]
        self.claimed = [name for name in claimed if is_claimed(self.study, name, self.owner)]
        self.references.extend(name for name in claimed if name not in self.claimed)
        self.view.total += len(claimed) - len(self.claimed)
        if self.total is None:
            self.trials += found
            self.view.total += found
            return
        self._count()
        if idle and self.elsewhere and not self.waits:
            self.waits = True
            self.view.say(f"waiting for {self.elsewhere} trials of other sweeps on this study")

    def _hand_back_unheard(self) -> None:
        flying = {flight.trial.number for flight in self.flying.values() if flight.trial}
        hand_back_unheard(self.study, self.owner, flying)

    def _count(self) -> None:
        """How many trials may be handed out, and how many are in other hands, by what the study knows now."""
        self.trials = remaining(self.study, None if self.closed else self.total)
        self.elsewhere = elsewhere(self.study, self.storage, self.owner)
        flying = {id(flight) for flight in self.flying.values()}
        self.view.total = self.view.counts.total() + len(flying) + self.trials + len(self.references)

    def _draw(self, barren: int, worker: Mapping[str, Any]) -> Drawn | None:
        """The next design; None where the study takes no more. Raises NsaLabError on a faulty sweep file."""
        self._hand_back_unheard()
        if self.total is not None:
            self._count()
            if not self.trials:
                return None
        trial = self._ask(barren)
        if self.total is not None and taken(self.study, before=trial.number) >= self.total:
            hand_back(self.study, trial)  # the lock was lost with the server, and another sweep was faster
            self._count()
            return None
        trial.set_user_attr("directory", str(self.directory / trial_name(original_number(trial))))
        trial.set_user_attr("worker", dict(worker))
        try:
            config = self._design(trial)
        except Infeasible as refusal:
            return Drawn(trial, refusal=str(refusal))
        except NsaLabError as fault:
            self._end(trial, TrialState.FAIL, str(fault))
            raise
        return Drawn(trial, config, twin=twin_of(self.study, trial))

    def _ask(self, barren: int) -> optuna.Trial:
        """A trial whose draws follow from seed and number: its sampler, so its study, are its own."""
        name = self.sweep.sampler if barren < STUBBORN or self.sweep.sampler == "brute" else "random"
        asked = next_trial(self.study, self.owner)
        study = optuna.load_study(
            study_name=self.study.study_name,
            storage=self.storage,
            sampler=build_sampler(name, (self.seed * 1_000_003 + asked.number) % 2**32),
            pruner=build_pruner(self.sweep.pruner if self.prunes else None),
        )
        study.stop = self._stop
        return optuna.Trial(study, asked._trial_id)

    def _stop(self) -> None:
        """What the brute-force sampler calls when no design is left. Optuna's own is for Optuna's own loop."""
        if self.trials:
            self._close("every design of the space has been tried")

    def _close(self, why: str) -> None:
        """Draw no more designs."""
        self.view.say(why)
        self.trials, self.closed = 0, True

    def _design(self, trial: optuna.Trial) -> ExperimentConfig:
        """The trial's config; its constraints are set on the trial either way. Raises Infeasible."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the study's first probes have given them, once and for all
            values = suggested(self.sweep, trial)
        trial.set_user_attr("overrides", values)
        try:
            config = design(self.base, values, f"{self.study.study_name}-{trial_name(original_number(trial))}")
        except ConfigError as error:
            trial.set_constraint("config", float(len(error.problems)))
            raise Infeasible("; ".join(str(problem) for problem in error.problems)) from error
        trial.set_constraint("config", 0.0)
        limits = constraint_values(self.sweep, config)
        for key, value in limits.items():
            trial.set_constraint(key, value)
        trial.set_user_attr("config_hash", config_hash(self._everywhere(config)))
        broken = [f"constraint {key} is {value:g}" for key, value in limits.items() if value > 0]
        if broken:
            raise Infeasible("; ".join(broken))
        return config

    def _everywhere(self, config: ExperimentConfig) -> ExperimentConfig:
        """A design as it is called on every machine: with the starting run's folder where the study was created."""
        path = self.study.user_attrs["base"]["model.path"] if self.start else config.model.path
        return replace(config, model=replace(config.model, path=path))

    def _reuse(self, trial: optuna.Trial, twin: FrozenTrial) -> None:
        """Give a trial what an earlier one of its design measured. One that still trains has nothing to give."""
        for key in ("directory", "metrics", "tracking_id", "half"):
            if key in twin.user_attrs:
                trial.set_user_attr(key, twin.user_attrs[key])
        trial.set_user_attr("reused", original_number(twin))
        state = TrialState.FAIL if twin.state == TrialState.RUNNING else twin.state
        self._end(trial, state, f"the design of trial {original_number(twin)}", twin.values)

    def _reference(self, name: str) -> Job | None:
        """The first job of a reference; None, said so, where the base experiment does not allow it."""
        try:
            config = design(self.base, self.sweep.references[name], f"{self.study.study_name}-{name}")
        except ConfigError as error:
            self.view.say(f"reference {name} is left out: {error.problems[0]}")
            return None
        tags = {"kind": "reference", "study": self.study.study_name, "trial": name}
        tags["mlflow.runName"] = f"{self.study.study_name}-{name}"
        return self._start(Flight(name, None), config, self.directory / name, tags)

    def _start(self, flight: Flight, config: ExperimentConfig, directory: Path, tags: Mapping[str, str]) -> Job:
        """The first job of a design; those of its other seeds wait."""
        options = {"run": self.run, "parent": self.parent, "asks": self.prunes}
        jobs = jobs_of(config, flight.name, directory, tags, self.seeds, **options)
        if self.start:
            jobs = {seed: self.start.lead(job, seed) for seed, job in jobs.items()}
        self.flying |= {job.name: flight for job in jobs.values()}
        first, *others = jobs.values()
        self.waiting.extend(others)
        return first

    def _tell(self, flight: Flight, job: Job, end: End) -> str | None:
        """Record what a design measured, over all its seeds."""
        for name in self.sweep.objectives:
            if name not in end.metrics:
                known = ", ".join(sorted(end.metrics))
                fault = f"{self.sweep.path}: objective {name!r} was not reported; a run reports {known}"
                self._fail(flight, fault)
                raise NsaLabError(fault)
        metrics = {k: v for k, v in end.metrics.items() if math.isfinite(v)}
        found = {
            "seconds": None if end.seconds is None else round(end.seconds, 3),
            "tracking_id": end.tracking_id,
            "metrics": metrics,
            "half": halves(flight.ends, self.sweep.objectives.keys() & metrics),
        }
        trial = flight.trial
        if trial is None:
            place = {"directory": str(self.directory / flight.name), "overrides": self.sweep.references[flight.name]}
            self.study.set_user_attr(f"reference:{flight.name}", found | place)
            self.view.finished(shown(read_reference(flight.name, found | place, self.sweep.objectives, self.base)))
            return None
        for key, value in found.items():
            trial.set_user_attr(key, value)
        if trial.user_attrs.get("pruned"):
            tracking.annotate(Path(job.directory), {"state": "pruned"})
            return self._end(trial, TrialState.PRUNED, f"pruned by {self.sweep.pruner}")
        for name in self.sweep.objectives:
            if name not in metrics:
                return self._end(trial, TrialState.FAIL, f"objective {name} is {end.metrics[name]}")
        return self._end(trial, TrialState.COMPLETE, values=[float(metrics[name]) for name in self.sweep.objectives])

    def _tags(self, trial: optuna.Trial) -> dict[str, str]:
        number = original_number(trial)
        tags = {"kind": "trial", "study": self.study.study_name, "sampler": self.sweep.sampler, "trial": str(number)}
        if retries := trial.user_attrs.get("life"):
            tags["retry"] = str(retries)
        name = f"{self.study.study_name}-{trial_name(number)} {words(trial.params)}"
        return tags | {"mlflow.runName": name[:200].strip()}

    def _refuse(self, trial: optuna.Trial, directory: Path, reason: str) -> None:
        """An MLflow run for a design that is not trained, so that filters on `state` find it."""
        base = design(self.base, {}, self.study.study_name)
        tags = {**self._tags(trial), "state": "infeasible", "reason": reason[:500]}
        with tracking.Tracker.open(base, directory, tags=tags, parent=self.parent, describe=False) as tracker:
            tracker.params(trial.params)
            tracker.finish("KILLED")
        trial.set_user_attr("tracking_id", tracker.run_id)
        self._end(trial, TrialState.PRUNED, reason)

    def _fail(self, flight: Flight, fault: str) -> str | None:
        self._give_up(flight)
        if flight.trial is not None:
            return self._end(flight.trial, TrialState.FAIL, fault)
        self.view.say(f"reference {flight.name} failed: {fault}")
        return fault

    def _queue_again(self, flight: Flight) -> None:
        if not flight.over and flight.trial is not None:
            trial = self._frozen(flight.trial)
            if not trial.state.is_finished():
                retry(self.study, trial, "interrupted", self.owner, counts=False)
        self._give_up(flight)

    def _give_up(self, flight: Flight) -> None:
        """Start no more of its jobs, and hear no more of those that run."""
        flight.over = True
        self.waiting = deque(job for job in self.waiting if self.flying[job.name] is not flight)

    def _end(self, trial: optuna.Trial, state: TrialState, reason: str = "", values: Any = None) -> str | None:
        """Tell the study and show it; the reason where the trial failed."""
        if reason:
            trial.set_user_attr("reason", reason)
        trial.study.tell(trial, values, state=state)
        self.view.finished(shown(read_row(self._frozen(trial), self.sweep.objectives)))
        return reason if state == TrialState.FAIL else None

    def _frozen(self, trial: optuna.Trial | FrozenTrial) -> FrozenTrial:
        return self.storage.get_trial(trial._trial_id)
