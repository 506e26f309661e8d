"""The sweep's side of its worker processes: start, talk, notice a death."""

import multiprocessing
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import optuna

from nsa_lab.search.trial import Job, Report
from nsa_lab.search.worker import main

TERMINATE_PATIENCE_S = 5.0


@dataclass
class Worker:
    """A worker process and the trial it holds, if any."""

    index: int
    process: Any
    connection: Connection
    ready: bool = False
    trial: optuna.Trial | None = None
    since: float = field(default_factory=time.monotonic)
    progress: Report | None = None

    @property
    def idle(self) -> bool:
        return self.ready and self.trial is None

    def give(self, trial: optuna.Trial) -> None:
        """Hand out a trial. A worker that just died is noticed by `messages`, with the trial in its hands."""
        self.trial, self.progress, self.since = trial, None, time.monotonic()
        try:
            self.connection.send(trial._trial_id)
        except BrokenPipeError:
            self.process.join()

    def messages(self) -> Iterator[Report]:
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
            return f"killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"


def start_worker(job: Job, index: int, workers: int) -> Worker:
    """Start worker `index` of `workers`; it says `ready` once it has imported what it needs."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=main, args=(job, index, workers, there), name=f"nsa-lab-worker-{index}")
    process.start()
    there.close()
    return Worker(index, process, here)


def wait_for_news(workers: list[Worker], timeout_s: float) -> None:
    """Return when a worker speaks or dies, at the latest after `timeout_s` seconds."""
    wait([item for w in workers for item in (w.connection, w.process.sentinel)], timeout_s)


def dismiss(worker: Worker) -> None:
    """Tell an idle worker to end."""
    with suppress(BrokenPipeError):  # it ended already
        worker.connection.send(None)
    worker.process.join(TERMINATE_PATIENCE_S)
    stop(worker)


def stop(worker: Worker) -> None:
    """End a worker now, whatever it does."""
    worker.process.terminate()
    worker.process.join(TERMINATE_PATIENCE_S)
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()


def log_tail(directory: Path, index: int) -> str:
    """The last line that a worker wrote."""
    log = directory / "logs" / f"worker-{index}.log"
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else "it wrote nothing"
