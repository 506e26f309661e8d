"""Does a source's jobs on worker processes, through deaths, faults, Ctrl-C and a time limit."""

import multiprocessing
import re
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from nsa_lab.errors import NsaLabError
from nsa_lab.runner.job import End, Job, Progress, Source
from nsa_lab.runner.recovery import identity
from nsa_lab.runner.view import View
from nsa_lab.runner.worker import READY, main

SAME_FAULTS = 3
REFRESH_S = 0.5
TERMINATE_PATIENCE_S = 5.0
NAME = "nsa-lab-worker-"


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """A job scheduler's SIGTERM ends what runs here like Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """Hear Ctrl-C only after the block. Processes that start in it never hear it: it is their pool's to end them."""
    resource_tracker.ensure_running()  # multiprocessing would start it within the block, and unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass
class Worker:
    """A worker process, seen from its pool, and the job in its hands."""

    index: int
    process: Any
    connection: Connection
    log: Path
    ready: bool = False
    job: Job | None = None
    since: float = 0.0
    progress: Progress | None = None

    def give(self, job: Job) -> None:
        self.job, self.progress, self.since = job, None, time.monotonic()
        self.say(job)

    def say(self, words: Any) -> None:
        """Send something. That the worker is dead will show when it is listened to."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(words)

    def words(self) -> Iterator[Any]:
        """What the worker has said since, what it said before its death included."""
        try:
            while self.connection.poll():
                yield self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()

    @property
    def dead(self) -> bool:
        return not self.process.is_alive()

    def how_it_died(self) -> str:
        code = self.process.exitcode
        if code is not None and code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def last_line(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        return lines[-1] if lines else "it wrote nothing"

    def end(self) -> None:
        """End the process, whatever it does."""
        self.process.join(TERMINATE_PATIENCE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


@dataclass
class Pool:
    """Does the jobs of `source` on `workers` processes that write into `logs` and import `run` before their first job.

    After `minutes` no job is started any more, beyond the first of each process.
    """

    source: Source
    run: str
    workers: int
    logs: Path
    view: View
    minutes: float | None = None
    crew: list[Worker] = field(default_factory=list)
    faults: deque[str] = field(default_factory=lambda: deque(maxlen=SAME_FAULTS))

    def work(self) -> None:
        """Work until no job is left, or none may be started.

        Raises NsaLabError on a fault that more jobs would only repeat. On that and on KeyboardInterrupt the workers
        are ended, and their jobs given back to the source.
        """
        self.workers = min(self.workers, self.source.left)
        self.unstarted = self.workers
        self.deadline = None if self.minutes is None else time.monotonic() + 60 * self.minutes
        try:
            for index in range(self.workers):
                self.crew.append(self._start(index))
            while self._open or any(worker.job for worker in self.crew):
                self._hand_out()
                self.view.show(self.crew)
                wait([item for w in self.crew for item in (w.connection, w.process.sentinel)], REFRESH_S)
                for worker in list(self.crew):
                    self._listen(worker)
                self.source.tick([worker.job for worker in self.crew if worker.job])
            for worker in self.crew:
                worker.say(None)
                worker.end()
        except BaseException:
            self._abandon()
            raise

    @property
    def _open(self) -> bool:
        """Whether another job may be started."""
        late = self.deadline is not None and time.monotonic() >= self.deadline
        return bool(self.source.left) and (self.unstarted > 0 or not late)

    def _start(self, index: int) -> Worker:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        log = self.logs / f"worker-{index}.log"
        arguments = (index, self.workers, log, self.run, there)
        process = context.Process(target=main, args=arguments, name=f"{NAME}{index}")
        with _ctrl_c_waits():
            process.start()
        there.close()
        return Worker(index, process, here, log)

    def _hand_out(self) -> None:
        for worker in self.crew:
            if not worker.ready or worker.job or not self._open:
                continue
            job = self.source.take(identity(worker.process.pid))
            if job is not None:
                self.unstarted -= 1
                worker.give(job)

    def _listen(self, worker: Worker) -> None:
        dead = worker.dead  # before its words are read, so that the last ones are among them
        for words in worker.words():
            self._take(worker, words)
        if dead or worker.dead:
            self._replace(worker)

    def _take(self, worker: Worker, words: Any) -> None:
        if words == READY:
            worker.ready = True
        elif isinstance(words, Progress) and worker.job:
            worker.progress = words
            stop = self.source.heard(worker.job, words)
            if worker.job.asks and words.validated:
                worker.say(stop)
        elif isinstance(words, End) and worker.job:
            job, worker.job = worker.job, None
            self._weigh(self.source.ended(job, words))
        elif isinstance(words, End):
            raise NsaLabError(str(words.fault))

    def _weigh(self, fault: str | None) -> None:
        """Raise NsaLabError when the same fault has come SAME_FAULTS times in a row."""
        if fault is None:
            return self.faults.clear()
        self.faults.append(re.sub(r"[\d.]+", "#", fault))
        if len(self.faults) == SAME_FAULTS and len(set(self.faults)) == 1:
            raise NsaLabError(
                f"{SAME_FAULTS} {self.view.what} in a row failed with the same fault: {fault}; mend it, see {self.logs}"
            )
        return None

    def _replace(self, worker: Worker) -> None:
        """A worker died: its job is tried again or failed, and another worker takes its place."""
        how = worker.how_it_died()
        if not worker.ready:
            last = worker.last_line()
            raise NsaLabError(f"worker {worker.index} {how} before its first job: {last}; see {worker.log}")
        self.crew.remove(worker)
        if worker.job:
            fault = self.source.died(worker.job, f"its worker {how}")
            if fault is None:
                self.view.say(f"{worker.job.name}: its worker {how}; queued again")
            else:
                self._weigh(fault)
        if self._open and self.source.left > sum(w.job is None for w in self.crew):
            self.crew.append(self._start(worker.index))

    def _abandon(self) -> None:
        """End the workers, one that was just being started too, and give their jobs back."""
        for process in multiprocessing.active_children():
            if process.name.startswith(NAME):
                process.terminate()
        for worker in self.crew:
            worker.end()
            if worker.job:
                self.source.interrupted(worker.job)
