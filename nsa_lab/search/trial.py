"""Trials as jobs: ask the study for a design, hand it out, tell the study how its training ended."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from nsa_lab.config import ExperimentConfig
from nsa_lab.errors import ConfigError, NsaLabError
from nsa_lab.runner.job import TRAIN, End, Job, Progress
from nsa_lab.runner.recovery import MAX_RETRIES, Lives, identity
from nsa_lab.runner.view import View
from nsa_lab.search.flights import Flight, Flights
from nsa_lab.search.lock import Lock
from nsa_lab.search.proposals import Drawn, Infeasible, Proposals
from nsa_lab.search.recovery import HEARTBEAT_S, beat, original_number, queued_for, reason_of, recover, retry
from nsa_lab.search.rows import REFERENCE, read_row, trial_name
from nsa_lab.search.seeds import jobs_of, merged
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
from nsa_lab.search.spec import Sweep, design
from nsa_lab.search.start import Start
from nsa_lab.search.telling import Telling
from nsa_lab.search.view import shown

BARREN = 100
"""Designs in a row that need or allow no training, after which the space is taken to be searched out."""
LOOK_S = 5.0
"""How often a sweep that has nothing to train looks whether other machines have left it something."""


@dataclass
class Trials:
    """A pool's source: hands out the `references`, then `trials` more trials of `study`, each with `seeds` seeds.

    A trial that needs no training, because its design was trained before or is infeasible, is none of these.
    With a `total` it hands out trials until all sweeps on the study have handed out that many, and is not through
    before these have ended: what a dead one leaves is trained here. `alone` holds off other sweeps on the study.
    Every design starts from the run of its seed that `start` names, where it is given.
    `base` is the base experiment as dotted keys, `owner` the process that all of this runs in.
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
    flights: Flights = field(default_factory=Flights)
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
        return self.trials + len(self.references) + len(self.flights.waiting) + away

    @property
    def prunes(self) -> bool:
        return self.sweep.pruner is not None and len(self.sweep.objectives) == 1 and self.seeds == 1

    @cached_property
    def proposals(self) -> Proposals:
        given = (self.study, self.storage, self.sweep, self.base, self.seed, self.owner)
        return Proposals(*given, prunes=self.prunes, started=self.start is not None)

    @cached_property
    def telling(self) -> Telling:
        given = (self.study, self.storage, self.sweep, self.base, self.directory)
        return Telling(*given, parent=self.parent, view=self.view)

    def take(self, worker: Mapping[str, Any]) -> Job | None:
        """The next job; the study is told of designs that need none. Raises NsaLabError on a faulty sweep file."""
        if self.flights.waiting:
            return self.flights.waiting.popleft()
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
                self.telling.refused(trial, directory, drawn.refusal)
            elif drawn.twin is not None:
                self.telling.reused(trial, drawn.twin)
            else:
                self.trials -= 1
                return self._start(Flight(directory.name, trial), drawn.config, directory, self.telling.tags(trial))
            barren += 1
            self.view.total += 1
        if barren == BARREN:
            self._close(f"{BARREN} designs in a row were trained before or infeasible: widen the space of suggest")
        return None

    def heard(self, job: Job, progress: Progress) -> bool:
        """Whether the pruner ends the trial, or another host has taken it over."""
        trial, objective = self.flights.of[job.name].trial, next(iter(self.sweep.objectives))
        if not (trial and job.asks and progress.validated and objective in progress.metrics):
            return False
        if self.telling.frozen(trial).state.is_finished():
            return True
        trial.report(progress.metrics[objective], progress.step)
        if not trial.should_prune():
            return False
        trial.set_user_attr("pruned", progress.step)
        return True

    def ended(self, job: Job, end: End) -> str | None:
        """Tell the study once every seed has ended. Raises NsaLabError where an objective was not reported."""
        flight = self.flights.of.pop(job.name)
        if flight.over:
            return None
        if flight.trial and self.telling.frozen(flight.trial).state.is_finished():
            flight.over = True
            self.view.say(f"{job.name}: this host was silent so long that another queued it again")
            return None
        if end.fault is not None:
            return self._fail(flight, end.fault)
        flight.ends.append(end)
        if len(flight.ends) < self.seeds:
            return None
        if fault := self.telling.unreported(merged(flight.ends).metrics):
            self._fail(flight, fault)
            raise NsaLabError(fault)
        return self.telling.measured(flight.name, flight.trial, flight.ends, Path(job.directory))

    def died(self, job: Job, reason: str) -> str | None:
        flight = self.flights.of.pop(job.name)
        if flight.over:
            return None
        if flight.trial is None or self.seeds > 1:
            if self.lives.used_up(job.directory):
                return self._fail(flight, f"{reason}, after {MAX_RETRIES} retries")
            self.flights.again(flight, job)
            return None
        trial = self.telling.frozen(flight.trial)
        if trial.state.is_finished() or retry(self.study, trial, reason, self.owner):
            self.trials += not trial.state.is_finished()
            return None
        trial = self.telling.frozen(trial)
        self.view.finished(shown(read_row(trial, self.sweep.objectives)))
        return reason_of(trial)

    def interrupted(self, job: Job) -> None:
        """Queue the trial again, which does not count as a retry."""
        flight = self.flights.of.pop(job.name, None)
        if flight is None:
            return
        if not flight.over and flight.trial is not None:
            trial = self.telling.frozen(flight.trial)
            if not trial.state.is_finished():
                retry(self.study, trial, "interrupted", self.owner, counts=False)
        self.flights.give_up(flight)

    def tick(self, jobs: Sequence[Job]) -> None:
        """Tell other machines now and then which trials are alive, and take over those of one that died."""
        now = time.monotonic()
        beats = now - self.last_beat > HEARTBEAT_S
        if beats:
            self.last_beat = now
            for job in jobs:
                flight = self.flights.of[job.name]
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
            hand_back_unheard(self.study, self.owner, self.flights.trials())
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

    def _count(self) -> None:
        """How many trials may be handed out, and how many are in other hands, by what the study knows now."""
        self.trials = remaining(self.study, None if self.closed else self.total)
        self.elsewhere = elsewhere(self.study, self.storage, self.owner)
        self.view.total = self.view.counts.total() + len(self.flights) + self.trials + len(self.references)

    def _draw(self, barren: int, worker: Mapping[str, Any]) -> Drawn | None:
        """The next design; None where the study takes no more. Raises NsaLabError on a faulty sweep file."""
        hand_back_unheard(self.study, self.owner, self.flights.trials())
        if self.total is not None:
            self._count()
            if not self.trials:
                return None
        trial = self.proposals.ask(barren, self._stop)
        if self.total is not None and taken(self.study, before=trial.number) >= self.total:
            hand_back(self.study, trial)  # the lock was lost with the server, and another sweep was faster
            self._count()
            return None
        trial.set_user_attr("directory", str(self.directory / trial_name(original_number(trial))))
        trial.set_user_attr("worker", dict(worker))
        try:
            config = self.proposals.design(trial)
        except Infeasible as refusal:
            return Drawn(trial, refusal=str(refusal))
        except NsaLabError as fault:
            self.telling.end(trial, TrialState.FAIL, str(fault))
            raise
        return Drawn(trial, config, twin=twin_of(self.study, trial))

    def _stop(self) -> None:
        """What the brute-force sampler calls when no design is left. Optuna's own is for Optuna's own loop."""
        if self.trials:
            self._close("every design of the space has been tried")

    def _close(self, why: str) -> None:
        """Draw no more designs."""
        self.view.say(why)
        self.trials, self.closed = 0, True

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
        return self.flights.begin(flight, jobs.values())

    def _fail(self, flight: Flight, fault: str) -> str | None:
        self.flights.give_up(flight)
        if flight.trial is not None:
            return self.telling.end(flight.trial, TrialState.FAIL, fault)
        self.view.say(f"reference {flight.name} failed: {fault}")
        return fault
