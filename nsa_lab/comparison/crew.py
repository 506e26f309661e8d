"""Trains a list of experiments on several processes, one line per finished training."""

import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsa_lab.comparison.rows import ORIGIN
from nsa_lab.comparison.spec import Training
from nsa_lab.errors import NsaLabError
from nsa_lab.files import read_json
from nsa_lab.runner.process import end_with_parent, redirect_output, share_machine


@dataclass(frozen=True)
class Outcome:
    """How a training ended: its final metrics and origin, or the reason why it has none."""

    training: Training
    metrics: dict[str, float]
    origin: dict[str, str]
    fault: str | None
    seconds: float


def train_all(trainings: Sequence[Training], workers: int, deadline: float | None) -> Iterator[Outcome]:
    """Outcomes as they come. After `deadline` (of time.monotonic) no training is started any more.

    Raises NsaLabError where a worker dies. On that and on KeyboardInterrupt the workers are ended; a training that
    was in flight goes on from its last checkpoint when it is asked for again.
    """
    context = multiprocessing.get_context("spawn")
    count = min(workers, len(trainings))
    waiting, flying = iter(trainings), dict[Future[Outcome], Training]()
    with ProcessPoolExecutor(count, context, _start, (context.Value("i", 0), count, logs_of(trainings))) as pool:
        try:
            for training in itertools.islice(waiting, count):
                flying[pool.submit(_train, training)] = training
            while flying:
                for done in wait(flying, return_when=FIRST_COMPLETED).done:
                    del flying[done]
                    if deadline is None or time.monotonic() < deadline:
                        for training in itertools.islice(waiting, 1):
                            flying[pool.submit(_train, training)] = training
                    yield done.result()
        except BrokenProcessPool as error:
            names = ", ".join(training.config.name for training in flying.values())
            raise NsaLabError(
                f"a worker died (out of memory?) while these trained: {names}; see {logs_of(trainings)}, "
                "use fewer workers, and run the same command again to go on"
            ) from error
        except BaseException:
            _end(pool)
            raise


def logs_of(trainings: Sequence[Training]) -> Path:
    """The folder of the workers' logs."""
    return trainings[0].directory.parent / "logs"


def _start(counter: Any, workers: int, logs: Path) -> None:
    """The first thing that a worker process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    with counter.get_lock():
        index, counter.value = counter.value, counter.value + 1
    redirect_output(logs / f"worker-{index}.log")
    share_machine(index, workers)


def _end(pool: ProcessPoolExecutor) -> None:
    pool.shutdown(wait=False, cancel_futures=True)
    for process in multiprocessing.active_children():
        process.terminate()


def _train(training: Training) -> Outcome:
    from nsa_lab.training import run

    started = time.monotonic()
    print(f"--- {training.config.name} in {training.directory}, process {os.getpid()}", flush=True)
    try:
        result = run(training.config, directory=training.directory, progress_bar=False)
        origin = read_json(result.directory / "origin.json", "delete the folder to train it again", ORIGIN)
    except NsaLabError as error:
        return Outcome(training, {}, {}, str(error), time.monotonic() - started)
    return Outcome(training, result.metrics, origin, None, time.monotonic() - started)
