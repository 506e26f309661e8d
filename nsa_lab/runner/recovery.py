"""Which process does a job, whether it still lives, and how often its job is tried again."""

import os
import socket
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

MAX_RETRIES = 2


def identity(pid: int | None = None) -> dict[str, Any]:
    """A process of this host, by default this one: host, pid, and its start time, for pids are used again."""
    pid = pid or os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "started": _start_time(pid)}


def is_here(process: Mapping[str, Any] | None) -> bool:
    """Whether a process was started on this host."""
    return process is not None and bool(process["host"] == socket.gethostname())


def is_alive(process: Mapping[str, Any]) -> bool:
    """Whether a process of this host still runs."""
    started = _start_time(process["pid"])
    return started is not None and started == process["started"]


def has_ended(process: Mapping[str, Any], patience_s: float) -> bool:
    """Wait for a process of this host that is about to end."""
    deadline = time.monotonic() + patience_s
    while is_alive(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def last_checkpoint(directory: str | Path) -> int:
    """When the last checkpoint in or below a run directory was written, in ns; 0 without one.

    A life that wrote one advanced its run, and does not count as a retry.
    """
    return max((file.stat().st_mtime_ns for file in Path(directory).glob("**/checkpoints/last.ckpt")), default=0)


class Lives:
    """How often the process of a run died, by the run's directory; a life that wrote a checkpoint does not count."""

    def __init__(self) -> None:
        self.lost: Counter[str] = Counter()
        self.reached: dict[str, int] = {}

    def used_up(self, directory: str) -> bool:
        """Count a death; whether they are more than MAX_RETRIES."""
        reached = last_checkpoint(directory)
        self.lost[directory] += reached == self.reached.get(directory, 0)
        self.reached[directory] = reached
        return self.lost[directory] > MAX_RETRIES


def _start_time(pid: int) -> str | None:
    """An opaque start time; None for a process that is gone or only waits to be reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return None if Path("/proc/self").exists() or not psutil.pid_exists(pid) else "running"
    return None if fields[0] in "ZX" else fields[19]
