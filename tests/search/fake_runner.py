"""Stands in for nsa_lab.train in worker processes: same signature, no training.

What it does is read from the environment, which worker processes inherit: FAKE_SECONDS (how long a run
takes), FAKE_LOG (a file that gets one line per start and end), FAKE_FAULT (an error for every run), FAKE_TRACK
(record runs), FAKE_CHECKPOINT (leave one), FAKE_HOST (what a sweep takes its host to be called).
"""

import errno
import json
import os
import signal
import socket
import sys
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsa_lab.errors import NsaLabError
from nsa_lab.tracking import Tracker

STEPS = 5


@dataclass(frozen=True)
class Progress:
    step: int
    steps: int
    metrics: dict[str, float]
    validated: bool


@dataclass(frozen=True)
class RunResult:
    directory: Path
    metrics: dict[str, float]
    tracking_id: str | None
    stopped: bool
    seconds: float


def run(config: Any, *, directory: Path | None = None, parent: str | None = None, tags: Any = None,
        on_progress: Any = None, progress_bar: bool = True) -> RunResult:  # fmt: skip
    assert directory is not None
    began = time.monotonic()
    directory.mkdir(parents=True, exist_ok=True)
    design = (config.attention.partition.block_size, config.attention.branches.window.size)
    _log(f"start {directory.name} {design}")
    (directory / "asked.json").write_text(json.dumps([config.model.path, config.training.steps]))
    tracker = Tracker.open(config, directory, parent=parent, tags=tags) if os.environ.get("FAKE_TRACK") else None
    _fail(os.environ.get("FAKE_FAULT", ""))
    accuracy = 1.0 - 1.0 / (1.0 + design[1] / design[0]) + 0.01 * config.seed
    metrics = {
        "val/accuracy": accuracy,
        "budget/keys_per_query": float(design[0] + 2 * design[1]),
        "train/loss": 0.1,
    }
    if os.environ.get("FAKE_CHECKPOINT"):
        (directory / "checkpoints").mkdir(exist_ok=True)
        (directory / "checkpoints" / "last.ckpt").touch()
    stopped = False
    for step in range(1, STEPS + 1):
        time.sleep(float(os.environ.get("FAKE_SECONDS", "0")) / STEPS)
        now = {**metrics, "val/accuracy": accuracy * step / STEPS}
        if tracker:
            tracker.metrics(now, step)
        if on_progress(Progress(step, STEPS, now, validated=True)):
            stopped = True
            break
    if tracker:
        tracker.finish()
    _log(f"end {directory.name} {design}")
    return RunResult(directory, metrics, tracker.run_id if tracker else None, stopped, time.monotonic() - began)


def sweep_in_a_process(file: str, options: dict[str, Any], output: str) -> None:
    """The body of a process that sweeps with this runner, and writes what it says to `output`."""
    from nsa_lab.search import sweep

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with SIGINT ignored
    if name := os.environ.get("FAKE_HOST"):
        socket.gethostname = lambda: name
    with open(output, "w") as said, redirect_stdout(said):
        try:
            result = sweep(file, runner="fake_runner:run", storage=os.environ.get("NSA_LAB_STORAGE"), **options)
        except NsaLabError as error:  # as the command does
            print(f"error: {error}")
            sys.exit(2)
    sys.exit(130 if result.interrupted else 0)


def _fail(fault: str) -> None:
    if fault == "full":
        raise NsaLabError("cannot write x: No space left on device") from OSError(errno.ENOSPC, "No space left")
    if fault == "memory":
        raise RuntimeError(f"out of memory: tried to allocate {time.time_ns()} bytes")
    if fault:
        raise NsaLabError(fault)


def _log(line: str) -> None:
    if log := os.environ.get("FAKE_LOG"):
        with open(log, "a") as file:
            file.write(f"{line} {os.getpid()}\n")
