"""What a process that trains for another one does first: where its output goes, which cores and GPU it takes."""

import glob
import multiprocessing
import os
import sys
from pathlib import Path


def end_with_parent() -> None:
    """Run in a thread: a killed parent takes its workers along, for nobody would collect what they train."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def redirect_output(log: Path) -> None:
    """Send what this process prints to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def share_machine(index: int, workers: int) -> None:
    """An even share of the cores, and one GPU each in turn, unless the environment says otherwise."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = len(glob.glob("/dev/nvidia[0-9]*"))
    devices = visible.split(",") if visible else [str(i) for i in range(count)]
    if workers > 1 and len(devices) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[index % len(devices)]
