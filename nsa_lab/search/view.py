"""What a sweep shows while it runs: a live table on a terminal, plain lines elsewhere."""

import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from optuna.trial import FrozenTrial
from rich.console import Console
from rich.live import Live
from rich.table import Table

from nsa_lab.search.rows import Row, read_row

RECENT = 8
COLOURS = {"complete": "green", "pruned": "yellow", "infeasible": "bright_black", "failed": "red"}


class Busy(Protocol):
    """The part of a worker that is shown."""

    index: int
    trial: Any
    since: float
    progress: Any


class View:
    """Plain lines: one per finished trial, with the share done. `total` counts all tickets of this sweep."""

    def __init__(self, console: Console, objectives: Mapping[str, str], total: int):
        self.console = console
        self.objectives = objectives
        self.total = total
        self.counts: Counter[str] = Counter()
        self.started = time.monotonic()

    def __enter__(self) -> "View":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def finished(self, trial: FrozenTrial) -> None:
        row = read_row(trial, self.objectives)
        self.counts[row.state] += 1
        self.say(f"{sum(self.counts.values())}/{self.total}  {one_line(row)}")

    def show(self, crew: Sequence[Busy], tickets: int) -> None:
        """Called twice a second; plain lines have nothing to add."""


class LiveView(View):
    """A table of the trials in training, the latest finished ones, and what is left."""

    def __init__(self, console: Console, objectives: Mapping[str, str], total: int):
        super().__init__(console, objectives, total)
        self.recent: deque[Row] = deque(maxlen=RECENT)
        self.live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> "LiveView":
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def finished(self, trial: FrozenTrial) -> None:
        row = read_row(trial, self.objectives)
        self.counts[row.state] += 1
        self.recent.append(row)

    def show(self, crew: Sequence[Busy], tickets: int) -> None:
        table = Table(title=self._title(tickets), title_justify="left", expand=True)
        for name in ("trial", "state", "step", *self.objectives, "time", "design"):
            table.add_column(name, overflow="fold", ratio=3 if name == "design" else None)
        for row in self.recent:
            values = [number(row.values.get(name)) for name in self.objectives]
            state = f"[{COLOURS.get(row.state, 'white')}]{row.state}[/]"
            table.add_row(str(row.number), state, "", *values, duration(row.seconds), row.reason or words(row.params))
        for worker in crew:
            if worker.trial is not None:
                table.add_row(*self._running(worker))
        self.live.update(table, refresh=True)

    def _running(self, worker: Busy) -> list[str]:
        progress = worker.progress
        metrics = progress.metrics if progress else {}
        step = f"{progress.step}/{progress.steps}" if progress else ""
        values = [number(metrics.get(name)) for name in self.objectives]
        seconds = time.monotonic() - worker.since
        return [
            str(worker.trial.number),
            "[cyan]running[/]",
            step,
            *values,
            duration(seconds),
            f"worker {worker.index}",
        ]

    def _title(self, tickets: int) -> str:
        done = sum(self.counts.values())
        counts = ", ".join(f"{count} {state}" for state, count in self.counts.items()) or "none finished"
        elapsed = time.monotonic() - self.started
        left = f", about {duration(elapsed / done * (self.total - done))} left" if done and done < self.total else ""
        return f"{done}/{self.total} trials ({counts}), {duration(elapsed)}{left}"


def open_view(console: Console, objectives: Mapping[str, str], total: int) -> View:
    """A live table where the console is a terminal, else plain lines."""
    return (LiveView if console.is_terminal else View)(console, objectives, total)


def one_line(row: Row) -> str:
    """A finished trial in one line."""
    values = "  ".join(f"{name} {number(value)}" for name, value in row.values.items())
    parts = [
        f"trial {row.number:04d} {row.state:<10}",
        values,
        duration(row.seconds),
        words(row.params),
        row.reason,
    ]
    return "  ".join(part for part in parts if part)


def words(params: Mapping[str, Any]) -> str:
    """Parameters without the common beginnings of their dotted names, as far as they stay distinct."""
    short = short_names(list(params))
    return " ".join(f"{short[name]}={value}" for name, value in params.items())


def short_names(names: Sequence[str]) -> dict[str, str]:
    """The shortest ends of dotted names, two parts or more, that tell them apart."""
    short = {}
    for name in names:
        parts = name.split(".")
        ends = [".".join(parts[-n:]) for n in range(min(2, len(parts)), len(parts) + 1)]
        unique = [end for end in ends if sum(f".{other}".endswith(f".{end}") for other in names) == 1]
        short[name] = unique[0] if unique else name
    return short


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
