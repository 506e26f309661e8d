"""What a pool shows while it works: a live table on a terminal, plain lines elsewhere."""

import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nsa_lab.runner.estimate import Estimate

RECENT = 8
SAY_EVERY_S = 15.0
COLOURS = {"complete": "green", "pruned": "yellow", "infeasible": "bright_black", "failed": "red"}


@dataclass(frozen=True)
class Shown:
    """A job that ended: for the table its parts (`note`: the design, the fault), elsewhere one `line`."""

    name: str
    state: str
    values: Mapping[str, float]
    seconds: float | None
    note: str

    @property
    def line(self) -> str:
        values = "  ".join(f"{name} {number(value)}" for name, value in self.values.items())
        parts = (f"{self.name} {self.state:<10}", values, duration(self.seconds), self.note)
        return "  ".join(part for part in parts if part)


class View:
    """Where the console is a terminal, a table of the jobs at work, the latest finished ones, and what is left.

    Elsewhere a line per finished job, and now and then one on those at work. One that failed has its line either way.
    `what` are the jobs ("trials"), `metrics` the columns of the table; `kinds` are those of jobs by name, where they
    are not all alike.
    """

    def __init__(
        self,
        console: Console,
        what: str,
        metrics: Sequence[str],
        total: int,
        kinds: Mapping[str, str] | None = None,
    ):
        self.console, self.what, self.metrics, self.total = console, what, metrics, total
        self.counts: Counter[str] = Counter()
        self.estimate = Estimate(kinds)
        self.recent: deque[Shown] = deque(maxlen=RECENT)
        self.live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> "View":
        self.started = self.said = time.monotonic()
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def finished(self, shown: Shown) -> None:
        self.counts[shown.state] += 1
        self.estimate.end(shown.name, time.monotonic(), shown.seconds)
        self.recent.append(shown)
        if not self.live or shown.state == "failed":
            self.say(f"{self.counts.total()}/{self.total}  {shown.line}")

    def show(self, crew: Sequence[Any]) -> None:
        """Draw the table anew; `crew` are a pool's workers."""
        title = self._title(crew)
        if not self.live:
            self._say_at_work(title, crew)
            return
        table = Table(title=title, title_justify="left", expand=True)
        for name in (self.what.removesuffix("s"), "state", "step", *self.metrics, "time", "design"):
            table.add_column(name, overflow="fold", ratio=3 if name == "design" else None)
        for one in self.recent:
            state = f"[{COLOURS.get(one.state, 'white')}]{one.state}[/]"
            table.add_row(one.name, state, "", *self._values(one.values), duration(one.seconds), Text(one.note))
        for worker in crew:
            if worker.job is not None:
                done, seconds = worker.progress, time.monotonic() - worker.since
                step, values = (f"{done.step}/{done.steps}", done.metrics) if done else ("", {})
                about = ("[cyan]running[/]", step, *self._values(values), duration(seconds), f"worker {worker.index}")
                table.add_row(worker.job.name, *about)
        self.live.update(table, refresh=True)

    def _say_at_work(self, title: str, crew: Sequence[Any]) -> None:
        if time.monotonic() - self.said < SAY_EVERY_S:
            return
        self.said = time.monotonic()
        steps = [f"{w.job.name} {w.progress.step}/{w.progress.steps}" for w in crew if w.job and w.progress]
        self.say(f"so far {title}; {', '.join(steps) or 'starting'}")

    def _values(self, metrics: Mapping[str, float]) -> list[str]:
        return [number(metrics.get(name)) for name in self.metrics]

    def _title(self, crew: Sequence[Any]) -> str:
        done = self.counts.total()
        counts = ", ".join(f"{count} {state}" for state, count in self.counts.items()) or "none finished"
        now = time.monotonic()
        seconds, unknown = self.estimate.left(self.total, crew, now)
        after = " and ".join(f"{count} {kind or self.what[:-1]}{'s' * (count > 1)}" for kind, count in unknown.items())
        left = f", about {duration(seconds)} left" if seconds else ""
        untimed = f", then {after} of unknown length" if left and after else ""
        return f"{done}/{self.total} {self.what} ({counts}), {duration(now - self.started)}{left}{untimed}"


def make_console(width: int = 160) -> Console:
    """The terminal; of `width`, wide enough for the tables, where the output goes to a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=width)


def number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
