"""How fast a training goes, and what its steps' time is spent on."""

import time

import numpy as np


class Clock:
    """Rates of steps, validation and the first (warming) step left out; `lap` since the last lap.

    processes: how many train together. peak: FLOPs a second that the GPU of each could do; None where that is unknown.
    """

    def __init__(self, processes: int = 1, peak: float | None = None) -> None:
        self.processes, self.peak = processes, peak
        self.total, self.current = np.zeros(5), np.zeros(5)
        self.first: np.ndarray | None = None

    def start(self) -> None:
        """Count time from now on."""
        self.started = time.perf_counter()

    def add(self, tokens: float, waited: float = 0.0, flops: float = 0.0) -> None:
        """A step is over: its tokens, FLOPs and the seconds that hosts waited for its batches, of all processes."""
        own = np.array([time.perf_counter() - self.started, 1, tokens, waited, flops])
        self.total, self.current = self.total + own, self.current + own
        if self.first is None:
            self.first = own
        self.start()

    @property
    def seconds(self) -> float:
        """Seconds since the last lap."""
        return float(self.current[0])

    def lap(self) -> dict[str, float]:
        """Rates since the last lap."""
        current, self.current = self.current, np.zeros(5)
        return self._rates(current)

    def overall(self) -> dict[str, float]:
        """Rates of every step but the first, or nothing before the first."""
        if self.first is None:
            return {}
        rest = self.total - self.first
        return self._rates(rest if rest[1] else self.total)

    def _rates(self, sums: np.ndarray) -> dict[str, float]:
        seconds, steps, tokens, waited, flops = sums.tolist()
        rates = {
            "throughput/tokens_per_second": tokens / seconds,
            "throughput/seconds_per_step": seconds / steps,
            "throughput/data_wait": waited / seconds / self.processes,
        }
        if self.peak is not None:
            rates["throughput/mfu"] = flops / seconds / self.processes / self.peak
        return rates
