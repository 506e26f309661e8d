"""Stands in for nsa_lab.train in worker processes: same signature, no training.

What a job does follows from its tag `variant`, which is one of the functions below or is mapped to one by the
environment (DOES_frame=die). JOBS_LOG names a file that gets a line for each start.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from nsa_lab.errors import NsaLabError
from nsa_lab.origin import code_digest, machine_facts

STEPS = 4


def run(config, *, directory, parent=None, tags=None, on_progress, progress_bar=True):
    directory.mkdir(parents=True, exist_ok=True)
    starts = directory / "starts"
    starts.write_text(starts.read_text() + "." if starts.exists() else ".")
    with open(os.environ["JOBS_LOG"], "a") as log:
        log.write(f"{tags['variant']} {tags['seed']} {os.getpid()}\n")
    print("at work", flush=True)
    act = globals().get(os.environ.get(f"DOES_{tags['variant']}", tags["variant"]))
    metrics = {"val/accuracy": 0.25 + config.seed / 100, "val/loss": 1.0}
    for step in range(1, STEPS + 1):
        if act is not None:
            act(step, len(starts.read_text()))
        if on_progress(SimpleNamespace(step=step, steps=STEPS, metrics=metrics, validated=step % 2 == 0)):
            metrics["stopped"] = step
            break
    (directory / "origin.json").write_text(json.dumps(machine_facts("cpu", 1) | {"code": code_digest()}))
    return SimpleNamespace(directory=Path(directory), metrics=metrics, tracking_id=None, stopped=False, seconds=0.0)


def die(step, start):
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(step, start):
    if start == 1 and step == 2:
        die(step, start)


def leave(step, start):
    sys.exit(3)


def fail(step, start):
    raise NsaLabError("loss became nan; lower it")


def crash(step, start):
    raise ValueError(f"wrong at {time.time()}\nand more")


def wait(step, start):
    time.sleep(float(os.environ.get("JOBS_WAIT", "20")))
