"""How much longer a pool's jobs take, by kind: what ended tells of the rest of its kind, and of no other."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any


class Estimate:
    """`kinds` are those of the jobs by name, where they are not all alike. Times are of time.monotonic()."""

    def __init__(self, kinds: Mapping[str, str] | None = None):
        self.kinds = kinds or {}
        self.ended: Counter[str] = Counter()
        self.took: dict[str, list[float]] = defaultdict(list)
        self.begun: dict[str, float] = {}

    def end(self, name: str, now: float, seconds: float | None) -> None:
        """A job ended, or a result of several, which took `seconds` (None: nobody knows, or it was never done)."""
        self.ended[self._kind(name)] += 1
        took = now - self.begun.pop(name) if name in self.begun else seconds
        if took is not None:
            self.took[self._kind(name)].append(took)

    def left(self, total: int, crew: Sequence[Any], now: float) -> tuple[float, Counter[str]]:
        """Seconds until all of `total` jobs have ended whose kind's time is known, and the others by kind.

        `crew` are a pool's workers.
        """
        busy = [worker for worker in crew if worker.job is not None]
        self.begun |= {worker.job.name: worker.since for worker in busy}
        planned = Counter(self.kinds.values()) + Counter({"": total - len(self.kinds)})
        rest = planned - self.ended
        known = {kind: seconds for kind in rest if (seconds := self._typical(kind, busy, now))}
        work, longest = sum(rest[kind] * seconds for kind, seconds in known.items()), 0.0
        for worker in busy:
            if (seconds := known.get(self._kind(worker.job.name))) is not None:
                work -= min(now - worker.since, seconds)
                longest = max(longest, seconds - (now - worker.since))
        return max(longest, work / max(1, len(crew))), Counter({kind: rest[kind] for kind in rest if kind not in known})

    def _typical(self, kind: str, busy: Sequence[Any], now: float) -> float | None:
        """Seconds of a job: the mean of those that ended, else as those at work promise."""
        took = self.took[kind] or [
            (now - worker.since) * worker.progress.steps / worker.progress.step
            for worker in busy
            if self._kind(worker.job.name) == kind and worker.progress and worker.progress.step
        ]
        return sum(took) / len(took) if took else None

    def _kind(self, name: str) -> str:
        return self.kinds.get(name, "")
