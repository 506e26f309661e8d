"""Median time, peak memory, and a limit on the time of the whole run."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch

MIB = 2**20
WARMUP_MS, REPEAT_MS = 10, 40
CALLS = 9
"""Least number of calls that a median from do_bench costs, the first included."""


class OutOfTime(BaseException):
    """The run's time is spent. Not an Exception, so that no library takes it for a failure it can work around."""


class Clock:
    """Seconds since the start of the run, and the limit."""

    def __init__(self, limit: float) -> None:
        self.started = time.monotonic()
        self.limit = limit

    @property
    def left(self) -> float:
        return self.limit - (time.monotonic() - self.started)

    @contextmanager
    def alarm(self) -> Iterator[None]:
        """Raise OutOfTime inside the block when the limit is reached, and each second from then on until it ends.

        Main thread only. A call into a compiler or the GPU ends first.
        """

        def ring(number: int, frame: FrameType | None) -> None:
            raise OutOfTime

        before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, max(self.left, 1e-3), 1.0)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def measure(run: Callable[[], object], device: torch.device, clock: Clock) -> tuple[float, float | None]:
    """Median milliseconds and peak MiB above what is allocated now; on a CPU one call and no peak.

    The first call compiles. Raises OutOfTime where one more call tells that a median will not fit.
    """
    run()
    if device.type != "cuda":
        return 1e3 * _seconds(run), None
    from triton.testing import do_bench

    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()

    def to_the_end() -> None:
        run()
        torch.cuda.synchronize()

    once = _seconds(to_the_end)
    peak = (torch.cuda.max_memory_allocated() - before) / MIB
    if once * CALLS > clock.left:
        raise OutOfTime
    return do_bench(run, warmup=WARMUP_MS, rep=REPEAT_MS, return_mode="median"), peak


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
