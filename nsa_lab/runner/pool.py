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

NAME = "nsa-lab-worker-"
SAME_FAULTS = 3
REFRESH_S = 0.5
TERMINATE_PATIENCE_S = 5.0


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


@dataclass
class Worker:
    """A worker process, seen from its pool, and the job in its hands."""

    index: int
    process: Any
    connection: Connection
    ready: bool = False
    job: Job | None = None
    since: float = 0.0
    progress: Progress | None = None

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

    def how_it_died(self) -> str:
        code = self.process.exitcode
        if code == -signal.SIGKILL:
            return "was killed by SIGKILL (out of memory?)"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def end(self) -> None:
        """End the process, whatever it does."""
        self.process.join(TERMINATE_PATIENCE_S)
        self.process.kill()
        self.process.join()


@dataclass
class Pool:
    """Does the jobs of `source` on `workers` processes that write into `logs` and import `run` before their first job.

    After `minutes` no job is started any more, beyond the first of each process, if there was one ready.
    """

    source: Source
    run: str
    workers: int
    logs: Path
    view: View
    minutes: float | None = None
    crew: list[Worker] = field(default_factory=list)
    stillborn: int = 0
    faults: deque[str] = field(default_factory=lambda: deque(maxlen=SAME_FAULTS))

    def work(self) -> None:
        """Work until no job is left, or none may be started.

        Raises NsaLabError on a fault that more jobs would only repeat. On that and on KeyboardInterrupt the workers
        are ended, and their jobs given back to the source.
        """
        self.unstarted = self.workers = min(max(1, self.workers), self.source.left)
        self.deadline = float("inf") if self.minutes is None else time.monotonic() + 60 * self.minutes
        try:
            with self.view:
                self._work()
        except BaseException:
            self._abandon()
            raise

    def _work(self) -> None:
        for index in range(self.workers):
            self._start(index)
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

    @property
    def _open(self) -> bool:
        """Whether another job may be started."""
        return self.source.left > 0 and (self.unstarted > 0 or time.monotonic() < self.deadline)

    def _log(self, index: int) -> Path:
        return self.logs / f"worker-{index}.log"

    def _start(self, index: int) -> None:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        arguments = (index, self.workers, self._log(index), self.run, there)
        process = context.Process(target=main, args=arguments, name=f"{NAME}{index}")
        # A process inherits that Ctrl-C is blocked, and so leaves it to its pool from the first moment on.
        resource_tracker.ensure_running()  # else multiprocessing starts it now, and unblocks the signal
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        there.close()
        self.crew.append(Worker(index, process, here))

    def _hand_out(self) -> None:
        for worker in self.crew:
            if worker.ready and not worker.job and self._open:
                worker.job = self.source.take(identity(worker.process.pid))
                self.unstarted = self.unstarted - 1 if worker.job else 0
                if worker.job:
                    worker.progress, worker.since = None, time.monotonic()
                    worker.say(worker.job)

    def _listen(self, worker: Worker) -> None:
        dead = not worker.process.is_alive()  # before its words are read, so that the last ones are among them
        for words in worker.words():
            self._take(worker, words)
        if dead or not worker.process.is_alive():
            self._replace(worker)

    def _take(self, worker: Worker, words: Any) -> None:
        if words == READY:
            worker.ready = True
        elif worker.job is None:
            raise NsaLabError(words.fault)  # what a worker says that is not ready
        elif isinstance(words, Progress):
            worker.progress = words
            stop = self.source.heard(worker.job, words)
            if worker.job.asks and words.validated:
                worker.say(stop)
        elif isinstance(words, End):
            job, worker.job = worker.job, None
            if words.full:
                self.source.interrupted(job)
                raise NsaLabError(f"{job.name}: {words.fault}; it comes first when the same command is run again")
            self._weigh(self.source.ended(job, words))

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
        how, log = worker.how_it_died(), self._log(worker.index)
        if not worker.ready and worker.process.exitcode < 0 and self.stillborn < SAME_FAULTS:
            self.stillborn += 1
        elif not worker.ready:
            lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
            last = lines[-1] if lines else "it wrote nothing"
            raise NsaLabError(f"worker {worker.index} {how} before its first job: {last}; see {log}")
        self.crew.remove(worker)
        if worker.job:
            fault = self.source.died(worker.job, f"its worker {how}")
            if fault is None:
                self.view.say(f"{worker.job.name}: its worker {how}; queued again")
            else:
                self._weigh(fault)
        if self._open and self.source.left > sum(w.job is None for w in self.crew):
            self._start(worker.index)

    def _abandon(self) -> None:
        """End the workers, one that was just being started too, and give their jobs back."""
        for process in multiprocessing.active_children():
            if process.name.startswith(NAME):
                process.terminate()
        for worker in self.crew:
            worker.end()
        for worker in self.crew:
            if worker.job:
                self.source.interrupted(worker.job)
