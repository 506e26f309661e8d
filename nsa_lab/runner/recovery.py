"""Which process holds a trial, and whether it still lives."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def identity() -> dict[str, Any]:
    """This process: host, pid, and its start time, for pids are used again."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _start_time(os.getpid())}


def is_here(process: Mapping[str, Any]) -> bool:
    """Whether a process was started on this host."""
    return bool(process["host"] == socket.gethostname())


def is_alive(process: Mapping[str, Any]) -> bool:
    """Whether a process of this host still runs."""
    started = _start_time(process["pid"])
    return started is not None and started == process["started"]


def _start_time(pid: int) -> str | None:
    """An opaque start time; None for a process that is gone or only waits to be reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return None if Path("/proc/self").exists() else _start_time_without_proc(pid)
    return None if fields[0] in "ZX" else fields[19]


def _start_time_without_proc(pid: int) -> str | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return "running"
    return "running"
