"""One measurement: what is measured, and how time and memory are read."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

MIB = 1 << 20


@dataclass(frozen=True)
class Point:
    """One measurement to take: a model size, an attention method and the video tokens of the one sample."""

    size: str
    method: str
    video_tokens: int


@dataclass(frozen=True)
class Measurement:
    """The fastest of the timed steps, and memory above that of the libraries and the model, in MiB."""

    seconds: float
    peak_mib: float
    base_mib: float


def memory_mib(device: Any, peak: bool) -> float:
    """Memory of this process in MiB, now or at its peak: resident on a CPU, allocated tensors on a GPU."""
    if device.type == "cuda":
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / MIB
    # Not getrusage: its maximum is inherited from the process that started this one.
    field = "VmHWM:" if peak else "VmRSS:"
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def now(device: Any) -> float:
    """Seconds on a clock that has waited for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def fastest(run: Callable[[], object], device: Any, repeats: int) -> float:
    """Seconds of the fastest of so many calls, each waited for."""
    times = []
    for _ in range(repeats):
        started = now(device)
        run()
        times.append(now(device) - started)
    return min(times)
