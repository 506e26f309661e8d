"""The Pareto set as a picture (PNG): two objectives against each other, one over trials, more in pairs."""

import itertools
from collections.abc import Iterator, Sequence
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
REFERENCES = ("#1d6996", "#e17c05", "#0f8554", "#5f4690")
LABEL_WIDTH = 0.05
LABEL_HEIGHT = 0.045


def write_png(outcome: Outcome, file: Path) -> None:
    """Draw the study into `file`; needs one complete trial or reference."""
    pairs = list(itertools.combinations(outcome.objectives, 2))
    columns = min(3, len(pairs)) or 1
    rows = -(-len(pairs) // columns) or 1
    size = (8, 5.2) if len(pairs) < 2 else (4.6 * columns, 4.2 * rows)
    figure, grid = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axes, pair in itertools.zip_longest(grid.flat, pairs):
        if pair is not None:
            _pair(axes, outcome, *pair)
        elif pairs:
            axes.set_axis_off()
        else:
            _history(axes, outcome)
    figure.suptitle(_title(outcome), fontsize=11, color=INK, x=0.01, ha="left")
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def coloured(outcome: Outcome) -> Iterator[tuple[Row, str]]:
    """The references that were trained, each with its colour."""
    return zip(outcome.references, itertools.cycle(REFERENCES), strict=False)


def _pair(axes: Any, outcome: Outcome, y: str, x: str) -> None:
    """Cost on x, quality on y; the front joined where it is a line in this plane (two objectives)."""
    if len(outcome.objectives) == 2:
        # A step: between two trials of the front nothing better than the worse of them is known.
        where = "post" if outcome.objectives[x] == "minimize" else "pre"
        front = sorted((row.values[x], row.values[y]) for row in outcome.front)
        axes.step(*zip(*front, strict=True), where=where, color=FRONT, linewidth=1.4, alpha=0.8)
    axes.set_xlabel(outcome.label(x))
    for name, line in ((x, axes.axvline), (y, axes.axhline)):
        if name in outcome.dense:
            line(outcome.dense[name], color=INK, linestyle="--", linewidth=1, label="dense attention")
    _points(axes, outcome, x, y, "Pareto set")


def _history(axes: Any, outcome: Outcome) -> None:
    """One objective over the trials: every trial, and the best so far."""
    (name, direction), = outcome.objectives.items()  # fmt: skip
    complete = [row for row in outcome.rows if row.state == "complete" and not row.reference]
    for row, colour in coloured(outcome):
        axes.axhline(row.values[name], color=colour, linestyle=":", label=row.reference)
    best = itertools.accumulate((row.values[name] for row in complete), max if direction == "maximize" else min)
    axes.step([row.number for row in complete], list(best), where="post", color=FRONT, label="best so far")
    axes.set_xlabel("trial")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _points(axes, outcome, None, name, "best")


def _points(axes: Any, outcome: Outcome, x: str | None, y: str, front: str) -> None:
    """Every trial at (x, y), `x` None for its number; the front in red, a ring around the recommended one."""
    trials = [row for row in outcome.rows if row.state == "complete" and not row.reference]
    best = [row for row in outcome.front if not row.reference]
    groups: list[tuple[str, list[Row], dict[str, Any]]] = [
        ("trial", trials, {"s": 26, "color": OTHER, "alpha": 0.7}),
        (front, best, {"s": 48, "color": FRONT, "edgecolors": "white", "zorder": 3}),
        ("recommended", outcome.front[:1], {"s": 130, "facecolors": "none", "edgecolors": FRONT, "zorder": 4}),
    ]
    if x:
        for row, colour in coloured(outcome):
            groups.append((row.reference, [row], {"s": 56, "color": colour, "marker": "D", "zorder": 3}))
    for label, rows, style in groups:
        if rows:
            axes.scatter(*zip(*(_place(row, x, y) for row in rows), strict=True), label=label, **style)
    axes.set_ylabel(outcome.label(y))
    axes.grid(True, color="#e6e9ed", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(0.08)
    axes.legend(fontsize=8, edgecolor="none", loc="best")
    _label(axes, outcome.front, x, y)


def _label(axes: Any, rows: Sequence[Row], x: str | None, y: str) -> None:
    """Write trial numbers beside their points, the recommended first; one that would cover another is left out."""
    axes.autoscale_view()
    to_axes = axes.transData + axes.transAxes.inverted()
    taken: list[tuple[float, float]] = []
    for row in rows:
        left, bottom = to_axes.transform(_place(row, x, y))
        if all(abs(left - other[0]) > LABEL_WIDTH or abs(bottom - other[1]) > LABEL_HEIGHT for other in taken):
            taken.append((left, bottom))
            place = {"xytext": (6, 5), "textcoords": "offset points"}
            axes.annotate(row.label, _place(row, x, y), fontsize=8, color=FRONT, **place)


def _place(row: Row, x: str | None, y: str) -> tuple[float, float]:
    return (row.values[x] if x else row.number), row.values[y]


def _title(outcome: Outcome) -> str:
    states = ("complete", "pruned", "infeasible", "failed")
    counts = [f"{outcome.count(state)} {state}" for state in states if outcome.count(state)]
    return f"{outcome.study}: {', '.join(counts)}"
