"""What a worker process is given and what it answers, and where a pool gets its jobs from."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from nsa_lab.runner.recovery import MAX_RETRIES

TRAIN = "nsa_lab.training.run:run"


@dataclass(frozen=True)
class Job:
    """A run to do in a worker process. `run` is the "module:function" that does it, called as nsa_lab.training.run.run.

    `config` is a plain tree. With `asks` a run waits after each validation for word whether to stop.
    """

    name: str
    config: Mapping[str, Any]
    directory: str
    run: str = TRAIN
    tags: Mapping[str, str] = field(default_factory=dict)
    parent: str | None = None
    asks: bool = False


@dataclass(frozen=True)
class Progress:
    """Where a job stands: `step` of `steps`, the latest of every metric, and whether it just validated."""

    step: int
    steps: int
    metrics: Mapping[str, float]
    validated: bool


@dataclass(frozen=True)
class End:
    """How a job ended: with what it measured, or with a fault (one line)."""

    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    tracking_id: str | None = None
    fault: str | None = None


class Source(Protocol):
    """Where a pool gets its jobs; `left` of them wait. Of each job that it handed out it hears one end."""

    @property
    def left(self) -> int: ...

    def take(self, worker: Mapping[str, Any]) -> Job | None:
        """The next job, for the process `worker` (see `recovery.identity`); None when there is none."""

    def heard(self, job: Job, progress: Progress) -> bool:
        """A running job's progress; a true answer ends a job that asks."""

    def ended(self, job: Job, end: End) -> str | None:
        """A job came to its end; returns its fault, if it failed."""

    def died(self, job: Job, reason: str) -> str | None:
        """A job's worker died; returns the fault where the job failed by it, None where it is queued again."""

    def interrupted(self, job: Job) -> None:
        """The pool ends before the job does."""

    def tick(self, jobs: Sequence[Job]) -> None:
        """Called twice a second with the jobs in flight."""


class JobList:
    """A fixed list of jobs; one whose worker dies is tried again, MAX_RETRIES times.

    `tell` hears every end and returns its fault, if there is one.
    """

    def __init__(self, jobs: Iterable[Job], tell: Callable[[Job, End], str | None]):
        self.waiting = deque(jobs)
        self.tell = tell
        self.deaths: Counter[str] = Counter()

    @property
    def left(self) -> int:
        return len(self.waiting)

    def take(self, worker: Mapping[str, Any]) -> Job | None:
        return self.waiting.popleft() if self.waiting else None

    def heard(self, job: Job, progress: Progress) -> bool:
        return False

    def ended(self, job: Job, end: End) -> str | None:
        return self.tell(job, end)

    def died(self, job: Job, reason: str) -> str | None:
        self.deaths[job.directory] += 1
        if self.deaths[job.directory] > MAX_RETRIES:
            return self.ended(job, End(0.0, fault=f"{reason}, after {MAX_RETRIES} retries"))
        self.waiting.appendleft(job)
        return None

    def interrupted(self, job: Job) -> None:
        self.waiting.appendleft(job)

    def tick(self, jobs: Sequence[Job]) -> None:
        return None
