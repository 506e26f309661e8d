"""A worker process: does jobs one by one until told to end, or until its pool is gone."""

import gc
import glob
import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from nsa_lab.config import load_config
from nsa_lab.errors import NsaLabError, first_line
from nsa_lab.files import is_full
from nsa_lab.redact import hide
from nsa_lab.runner.job import End, Job, Progress
from nsa_lab.runner.python_file import kind_of

READY = "ready"
SHOW_EVERY_S = 0.2


def main(index: int, workers: int, log: Path, run: str, connection: Connection) -> None:
    """The body of worker `index`. It says READY once it has imported `run`, or else ends with the reason."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the pool's to hear
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _redirect_output(log)
    _share_machine(index, workers)
    try:
        load_function(run)  # after the environment above is set: it imports torch
    except NsaLabError as error:
        return connection.send(End(0.0, fault=str(error)))
    connection.send(READY)
    while (job := connection.recv()) is not None:
        connection.send(_do(job, connection))
    return None


def load_function(name: str) -> Callable[..., Any]:
    """The function called "package.module:function". Raises NsaLabError where it cannot be imported."""
    module, _, function = name.partition(":")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise NsaLabError(f"runner {name} cannot be imported: {error}") from error
    return found


def _do(job: Job, connection: Connection) -> End:
    started = time.monotonic()
    _note(f"--- {job.name} in {job.directory}, process {os.getpid()}")
    try:
        run, config = load_function(job.run), load_config(None, dict(job.config))
        where = {"directory": Path(job.directory), "parent": job.parent, "tags": job.tags}
        result = run(config, **where, on_progress=_teller(job, connection), progress_bar=False)
    except Exception as error:
        _note(hide(traceback.format_exc()))
        mendable = isinstance(error, NsaLabError)
        fault = first_line(error) if mendable else kind_of(error)
        return End(time.monotonic() - started, fault=fault, full=is_full(error))
    finally:
        _free_memory()
    return End(result.seconds, result.metrics, result.tracking_id)


def _teller(job: Job, connection: Connection) -> Callable[[Any], bool]:
    """What a run calls with its progress; true where it shall stop."""
    last = 0.0

    def on_progress(progress: Any) -> bool:
        nonlocal last
        if progress.validated or time.monotonic() - last > SHOW_EVERY_S:
            last = time.monotonic()
            connection.send(Progress(progress.step, progress.steps, dict(progress.metrics), progress.validated))
        return job.asks and progress.validated and bool(connection.recv())

    return on_progress


def _note(text: str) -> None:
    """Write to the log. A full disk there must not cost the job, whose end is told to the pool either way."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _free_memory() -> None:
    """Give back what a job held, most of all on a GPU after it ran out of memory."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _end_with_parent() -> None:
    """Run in a thread: a killed parent takes its workers along, for nobody would collect what they train."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _redirect_output(log: Path) -> None:
    """Send what this process prints to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def _share_machine(index: int, workers: int) -> None:
    """An even share of the cores, and one GPU each in turn, unless the environment says otherwise."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = len(glob.glob("/dev/nvidia[0-9]*"))
    devices = visible.split(",") if visible else [str(i) for i in range(count)]
    if workers > 1 and len(devices) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[index % len(devices)]
