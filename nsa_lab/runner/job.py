"""What a worker process is given and what it answers, and where a pool gets its jobs from."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from nsa_lab.runner.recovery import MAX_RETRIES, Lives

TRAIN = "nsa_lab.api:train"


@dataclass(frozen=True)
class Job:
    """A run to do in a worker process. `run` is the "module:function" that does it, called as nsa_lab.train is.

    `config` is a plain tree. With `asks` a run waits after each validation for word whether to stop. `after` is the
    directory of a job that has to be over before.
    """

    name: str
    config: Mapping[str, Any]
    directory: str
    run: str = TRAIN
    tags: Mapping[str, str] = field(default_factory=dict)
    parent: str | None = None
    asks: bool = False
    after: str | None = None


@dataclass(frozen=True)
class Progress:
    """Where a job stands: `step` of `steps`, the latest of every metric, and whether it just validated."""

    step: int
    steps: int
    metrics: Mapping[str, float]
    validated: bool


@dataclass(frozen=True)
class End:
    """How a job ended: with what it measured, or with a fault (one line), which may be that the disk is `full`.

    `seconds` are those of its training, whichever processes did it (None where that is not known), or until the fault.
    """

    seconds: float | None
    metrics: Mapping[str, float] = field(default_factory=dict)
    tracking_id: str | None = None
    fault: str | None = None
    full: bool = False


class Source(Protocol):
    """Where a pool gets its jobs; `left` of them wait. `take` gives the next one to the process `worker`.

    Of each job it then hears one end: `ended`, which returns the job's fault if it failed; `died` with its worker,
    which returns the fault, or None where the job is queued again; or `interrupted` with the pool. In between a true
    answer to `heard` stops a job that asks, and `tick` names the jobs in flight twice a second.
    """

    @property
    def left(self) -> int: ...
    def take(self, worker: Mapping[str, Any]) -> Job | None: ...
    def heard(self, job: Job, progress: Progress) -> bool: ...
    def ended(self, job: Job, end: End) -> str | None: ...
    def died(self, job: Job, reason: str) -> str | None: ...
    def interrupted(self, job: Job) -> None: ...
    def tick(self, jobs: Sequence[Job]) -> None: ...


class JobList:
    """A fixed list of jobs, each begun once the one that it comes `after` is over, if that is in the list; where that
    failed it is dropped. One whose worker dies is tried again, MAX_RETRIES times without a new checkpoint.

    `tell` hears every end and returns its fault, if there is one.
    """

    def __init__(self, jobs: Iterable[Job], tell: Callable[[Job, End], str | None]):
        self.waiting, self.tell = deque(jobs), tell
        self.pending = {job.directory for job in self.waiting}
        self.lives = Lives()

    @property
    def left(self) -> int:
        return len(self.waiting)

    def take(self, worker: Mapping[str, Any]) -> Job | None:
        job = next((job for job in self.waiting if job.after not in self.pending), None)
        if job is not None:
            self.waiting.remove(job)
        return job

    def heard(self, job: Job, progress: Progress) -> bool:
        return False

    def ended(self, job: Job, end: End) -> str | None:
        fault = self.tell(job, end)
        if fault is None:
            self.pending.discard(job.directory)
        else:
            self._drop(job.directory)
        return fault

    def _drop(self, failed: str) -> None:
        """Forget the jobs that come after one that failed, and those after them."""
        for job in [job for job in self.waiting if job.after == failed]:
            self.waiting.remove(job)
            self._drop(job.directory)

    def died(self, job: Job, reason: str) -> str | None:
        if self.lives.used_up(job.directory):
            return self.ended(job, End(0.0, fault=f"{reason}, after {MAX_RETRIES} retries"))
        self.waiting.appendleft(job)
        return None

    def interrupted(self, job: Job) -> None:
        self.waiting.appendleft(job)

    def tick(self, jobs: Sequence[Job]) -> None:
        return None
