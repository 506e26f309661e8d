"""A comparison as pictures (SVG): a dot for each seed, the mean and its interval; and quality against budget."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from nsa_lab.comparison.rows import Row
from nsa_lab.comparison.spec import Comparison
from nsa_lab.comparison.tables import experiments_of, mean, metric_values, variants_of

INK, FAINT, GRID = "#2f3b48", "#9aa5b1", "#e4e7eb"
# Okabe and Ito's colours, which readers with any colour vision tell apart, each with a shape of its own.
LOOKS = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"))
KEYS = "budget/keys_per_query_with_compressed"
WIDTH = 4.6
CHARACTER, LINE = 0.0135, 0.04
"""Width and height of a label's letter, in shares of the axes."""
RISES = (-0.05, 0.02, 0.07, -0.1, 0.12, -0.15)


def means_chart(comparison: Comparison, rows: Sequence[Row], metric: str) -> str:
    """One line a design, a look for each experiment; bars are 95% intervals over seeds, faint dots single seeds."""
    variants, experiments = variants_of(comparison, rows), experiments_of(comparison, rows)
    figure, axes = _axes(0.34 * len(variants) + 1.0 + 0.2 * len(experiments))
    scale = 100 if "accuracy" in metric else 1
    for number, experiment in enumerate(experiments):
        colour, shape = LOOKS[number % len(LOOKS)]
        shift = (number - (len(experiments) - 1) / 2) * 0.6 / len(experiments)
        for place, variant in enumerate(variants):
            seeds = metric_values(rows, [experiment], variant, metric)
            value = mean(rows, [experiment], variant, metric)
            if value is None:
                continue
            y = place + shift
            half = 0 if math.isnan(value.half) else scale * value.half
            axes.plot([scale * v for v in seeds.values()], [y] * len(seeds), ".", color=colour, alpha=0.35, ms=4)
            axes.errorbar(
                scale * value.mean, y, xerr=half, fmt=shape, color=colour, ms=5, lw=1.4, label=_plain(experiment)
            )
    if "accuracy" in metric:
        axes.set_xlim(-3, 103)
    axes.set_yticks(range(len(variants)), map(_plain, variants))
    axes.set_ylim(len(variants) - 0.5, -0.5)
    axes.set_xlabel("per cent" if "accuracy" in metric else metric)
    axes.grid(axis="x", color=GRID, lw=0.8)
    _legend(axes)
    return _svg(figure)


def budget_chart(comparison: Comparison, rows: Sequence[Row], metric: str) -> str | None:
    """Means of `metric` in the first experiment against the keys that a video query reads, pooled ones among them.

    None where no budget was measured.
    """
    (colour, shape), experiment = LOOKS[0], experiments_of(comparison, rows)[0]
    scale, points = 100 if "accuracy" in metric else 1, {}
    for variant in comparison.variants:
        x, y = (mean(rows, [experiment], variant, name) for name in (KEYS, metric))
        if x is not None and y is not None:
            points[variant] = (x.mean, scale * y.mean)
    if not points:
        return None
    figure, axes = _axes(3.6)
    for point in points.values():
        axes.plot(*point, shape, color=colour, ms=6)
    axes.margins(0.12)
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # what places in shares of the axes are counted by
    _label(axes, points)
    axes.set_xlabel("keys a video query reads, pooled ones among them")
    axes.set_ylabel("per cent" if "accuracy" in metric else metric)
    axes.grid(color=GRID, lw=0.8)
    return _svg(figure)


def _label(axes: Any, points: Mapping[str, tuple[float, float]]) -> None:
    """Names beside their points, each at the first place around it where it meets no other, as far as one is free."""
    inverse = axes.transAxes.inverted()
    taken: list[tuple[float, float, float, float]] = []
    for name, point in sorted(points.items(), key=lambda item: item[1]):
        x, y = inverse.transform(axes.transData.transform(point))
        width = CHARACTER * len(name)
        places = [(side * 0.02 - (side < 0) * width, rise) for rise in RISES for side in (1, -1)]
        boxes = [(x + dx, y + dy, x + dx + width, y + dy + LINE) for dx, dy in places]
        free = [
            box for box in boxes if box[0] >= 0 and box[2] <= 1.05 and not any(_meet(box, other) for other in taken)
        ]
        box = (free or boxes)[0]
        taken.append(box)
        axes.text(*box[:2], _plain(name), transform=axes.transAxes, fontsize=6.5, color=INK)


def _plain(name: str) -> str:
    """A name as matplotlib draws it letter by letter: no mathematics, and in legends too."""
    escaped = name.replace("$", r"\$")
    return f"\u200b{escaped}" if escaped.startswith("_") else escaped


def _meet(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _axes(height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.spines[:].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=8)
    axes.xaxis.label.set(color=INK, size=8)
    axes.yaxis.label.set(color=INK, size=8)
    return figure, axes


def _legend(axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    each = dict(zip(labels, handles, strict=True))
    if len(each) > 1:
        axes.figure.legend(each.values(), each, fontsize=7.5, frameon=False, loc="outside upper left", labelcolor=INK)


def _svg(figure: Figure) -> str:
    """The picture as an element for HTML. Its texts stay texts, so that they can be searched and read out."""
    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "nsa-lab"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "", text[text.index("<svg") :], count=1)
