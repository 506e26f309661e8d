"""Designs in training, each with a job a seed."""

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import optuna

from nsa_lab.runner.job import End, Job


@dataclass
class Flight:
    """A design in training: a trial, or a reference by its name; and how its jobs, one a seed, ended so far."""

    name: str
    trial: optuna.Trial | None
    ends: list[End] = field(default_factory=list)
    over: bool = False


@dataclass
class Flights:
    """Those whose jobs run or wait, by the jobs' names; `waiting` has yet to be handed out."""

    waiting: deque[Job] = field(default_factory=deque)
    of: dict[str, Flight] = field(default_factory=dict)

    def begin(self, flight: Flight, jobs: Collection[Job]) -> Job:
        """The first of its jobs; the others wait."""
        self.of |= {job.name: flight for job in jobs}
        first, *others = jobs
        self.waiting.extend(others)
        return first

    def again(self, flight: Flight, job: Job) -> None:
        """Have a job wait that was handed out, as the next one."""
        self.of[job.name] = flight
        self.waiting.appendleft(job)

    def give_up(self, flight: Flight) -> None:
        """Start no more of its jobs, and hear no more of those that run."""
        flight.over = True
        self.waiting = deque(job for job in self.waiting if self.of[job.name] is not flight)

    def trials(self) -> Sequence[int]:
        """The numbers of the trials among them."""
        return [flight.trial.number for flight in self.of.values() if flight.trial]

    def __len__(self) -> int:
        return len({id(flight) for flight in self.of.values()})
