"""The Pareto set as a picture (PNG): two objectives against each other, one over trials, more in pairs."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.ticker import MaxNLocator

from nsa_lab.search.rows import Outcome, Row

FRONT = "#d1495b"
OTHER = "#9aa5b1"
INK = "#2f3b48"
LABEL_WIDTH = 0.05
LABEL_HEIGHT = 0.045


def write_png(outcome: Outcome, file: Path) -> None:
    """Draw the study into `file`; needs one complete trial."""
    names = list(outcome.objectives)
    pairs = list(itertools.combinations(names, 2))
    style = {
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "font.size": 10,
    }
    with pyplot.rc_context(style):
        columns = min(3, max(1, len(pairs)))
        rows = -(-max(1, len(pairs)) // columns)
        size = (8, 5.2) if len(pairs) < 2 else (4.6 * columns, 4.2 * rows)
        figure, grid = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
        if not pairs:
            _history(grid[0][0], outcome)
        for axes, pair in itertools.zip_longest(grid.flat, pairs):
            if pair is not None:
                _pair(axes, outcome, *pair)
            elif pairs:
                axes.set_axis_off()
        figure.suptitle(_title(outcome), fontsize=11, color=INK, x=0.01, ha="left")
        figure.savefig(file, dpi=150)
        pyplot.close(figure)


def _pair(axes: Any, outcome: Outcome, second: str, first: str) -> None:
    """Cost on x, quality on y; the front joined where it is a line in this plane (two objectives)."""
    x, y = first, second
    complete = [row for row in outcome.rows if row.state == "complete"]
    front = sorted(outcome.front, key=lambda row: row.values[x])
    axes.scatter(*_columns(complete, x, y), s=26, color=OTHER, alpha=0.7, linewidths=0, label="trial")
    if len(outcome.objectives) == 2 and len(front) > 1:
        # A step: between two trials of the front nothing better than the worse of them is known.
        where = "post" if outcome.objectives[x] == "minimize" else "pre"
        axes.step(*_columns(front, x, y), where=where, color=FRONT, linewidth=1.4, alpha=0.8)
    axes.scatter(
        *_columns(front, x, y),
        s=48,
        color=FRONT,
        edgecolors="white",
        linewidths=0.8,
        label="Pareto set",
        zorder=3,
    )
    best = outcome.best
    if best is not None:
        ring = {"s": 130, "facecolors": "none", "edgecolors": FRONT, "linewidths": 1.4}
        axes.scatter(best.values[x], best.values[y], label="recommended", zorder=4, **ring)
    axes.set_xlabel(_axis(outcome, x))
    axes.set_ylabel(_axis(outcome, y))
    _dress(axes)
    _label(axes, outcome.front, x, y)


def _history(axes: Any, outcome: Outcome) -> None:
    """One objective over the trials: every trial, and the best so far."""
    (name, direction), = outcome.objectives.items()  # fmt: skip
    complete = [row for row in outcome.rows if row.state == "complete"]
    numbers, values = [row.number for row in complete], [row.values[name] for row in complete]
    better = max if direction == "maximize" else min
    axes.scatter(numbers, values, s=30, color=OTHER, linewidths=0, label="trial")
    axes.step(numbers, list(itertools.accumulate(values, better)), where="post", color=FRONT, label="best so far")
    low = min(values) if direction == "maximize" else max(values)
    for state, marker in (("pruned", "x"), ("infeasible", "|"), ("failed", "1")):
        some = [row.number for row in outcome.rows if row.state == state]
        if some:
            axes.scatter(
                some,
                [low] * len(some),
                s=34,
                marker=marker,
                color=INK,
                alpha=0.6,
                label=f"{state} (no value)",
            )
    axes.scatter([outcome.front[0].number], [outcome.front[0].values[name]], s=60, color=FRONT, zorder=3)
    axes.set_xlabel("trial")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(_axis(outcome, name))
    _dress(axes)
    _label(axes, outcome.front, None, name)


def _label(axes: Any, rows: Sequence[Row], x: str | None, y: str) -> None:
    """Write trial numbers beside their points, the recommended first; one that would cover another is left out."""
    axes.autoscale_view()
    to_axes = axes.transData + axes.transAxes.inverted()
    taken: list[tuple[float, float]] = []
    for row in rows:
        at = (row.values[x] if x else row.number, row.values[y])
        left, bottom = to_axes.transform(at)
        if any(abs(left - other[0]) < LABEL_WIDTH and abs(bottom - other[1]) < LABEL_HEIGHT for other in taken):
            continue
        taken.append((left, bottom))
        axes.annotate(str(row.number), at, xytext=(6, 5), textcoords="offset points", fontsize=8, color=FRONT)


def _dress(axes: Any) -> None:
    axes.grid(True, color="#e6e9ed", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(0.08)
    axes.legend(fontsize=8, frameon=True, framealpha=0.85, edgecolor="none", loc="best")


def _columns(rows: Sequence[Row], x: str, y: str) -> tuple[list[float], list[float]]:
    return [row.values[x] for row in rows], [row.values[y] for row in rows]


def _axis(outcome: Outcome, name: str) -> str:
    better = {"maximize": "higher is better", "minimize": "lower is better"}[outcome.objectives[name]]
    return f"{name}  ({better})"


def _title(outcome: Outcome) -> str:
    states = ("complete", "pruned", "infeasible", "failed")
    counts = [f"{outcome.count(state)} {state}" for state in states if outcome.count(state)]
    drawn = "" if len(outcome.objectives) == 1 or len(counts) < 2 else " (only complete trials have values)"
    return f"{outcome.study}: {', '.join(counts)}{drawn}"
