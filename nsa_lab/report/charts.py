"""A comparison as pictures (SVG): a dot for each seed, the mean and its interval; and quality against budget."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nsa_lab.comparison.rows import Row
from nsa_lab.comparison.spec import Comparison
from nsa_lab.comparison.tables import experiments_of, mean, metric_values, variants_of
from nsa_lab.report.curves import KEYS, LABEL, curves_chart, has_curves, main_experiment
from nsa_lab.report.drawing import GRID, INK, LOOKS, legend, make_axes, plain, to_svg

CHARACTER, LINE = 0.0135, 0.04
"""Width and height of a label's letter, in shares of the axes."""
RISES = (-0.05, 0.02, 0.07, -0.1, 0.12, -0.15)


def means_chart(comparison: Comparison, rows: Sequence[Row], metric: str) -> str:
    """One line a design, a look for each experiment; bars are 95% intervals over seeds, faint dots single seeds."""
    variants, experiments = variants_of(comparison, rows), experiments_of(comparison, rows)
    figure, axes = make_axes(0.34 * len(variants) + 1.0 + 0.2 * len(experiments))
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
                scale * value.mean, y, xerr=half, fmt=shape, color=colour, ms=5, lw=1.4, label=plain(experiment)
            )
    if "accuracy" in metric:
        axes.set_xlim(-3, 103)
    axes.set_yticks(range(len(variants)), map(plain, variants))
    axes.set_ylim(len(variants) - 0.5, -0.5)
    axes.set_xlabel("per cent" if "accuracy" in metric else metric)
    axes.grid(axis="x", color=GRID, lw=0.8)
    legend(axes)
    return to_svg(figure)


def budget_chart(comparison: Comparison, rows: Sequence[Row], metric: str) -> str | None:
    """Means of `metric` in the main experiment against the keys that a video query reads, pooled ones among them.

    As curves where methods have several budgets. None where no budget was measured.
    """
    if has_curves(comparison):
        return curves_chart(comparison, rows, metric)
    (colour, shape), experiment = LOOKS[0], main_experiment(comparison, rows)
    scale, points = 100 if "accuracy" in metric else 1, {}
    for variant in comparison.variants:
        x, y = (mean(rows, [experiment], variant, name) for name in (KEYS, metric))
        if x is not None and y is not None:
            points[variant] = (x.mean, scale * y.mean)
    if not points:
        return None
    figure, axes = make_axes(3.6)
    for point in points.values():
        axes.plot(*point, shape, color=colour, ms=6)
    axes.margins(0.12)
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # what places in shares of the axes are counted by
    _label(axes, points)
    axes.set_xlabel(LABEL)
    axes.set_ylabel("per cent" if "accuracy" in metric else metric)
    axes.grid(color=GRID, lw=0.8)
    return to_svg(figure)


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
        axes.text(*box[:2], plain(name), transform=axes.transAxes, fontsize=6.5, color=INK)


def _meet(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
