"""Accuracy against budget as a curve for each method, where variants are called METHOD-BUDGET."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from nsa_lab.comparison.rows import Row
from nsa_lab.comparison.spec import Comparison
from nsa_lab.comparison.tables import experiments_of, mean, metric_values
from nsa_lab.report.drawing import FAINT, GRID, INK, LOOKS, make_axes, plain, to_svg

KEYS = "budget/keys_per_query_with_compressed"
LABEL = "keys a video query reads, pooled ones among them"


def method_of(variant: str) -> str:
    """What stands before a variant's budget: `x_attention` of `x_attention-25`; all of a name without one."""
    return re.sub(r"-\d+$", "", variant)


def budgets_of(variants: Iterable[str]) -> list[str]:
    """The budgets that names end with, the largest first."""
    found = {match[1] for name in variants if (match := re.search(r"-(\d+)$", name))}
    return sorted(found, key=int, reverse=True)


def main_experiment(comparison: Comparison, rows: Sequence[Row]) -> str:
    """The experiment that has most of the variants; the first of several."""
    return max(
        experiments_of(comparison, rows),
        key=lambda name: len({row["variant"] for row in rows if row["experiment"] == name} - {"start"}),
    )


def has_curves(comparison: Comparison) -> bool:
    """Whether some method has several budgets."""
    return len({method_of(name) for name in comparison.variants}) < len(comparison.variants) and bool(
        budgets_of(comparison.variants)
    )


def curves_chart(comparison: Comparison, rows: Sequence[Row], metric: str) -> str | None:
    """A curve a method with 95% intervals over seeds, what has no budget in its name as a line across; None without
    budgets in the rows."""
    experiment = main_experiment(comparison, rows)
    points: dict[str, list[tuple[float, float, float]]] = {}
    for variant in comparison.variants:
        if metric_values(rows, [experiment], variant, KEYS):
            x, y = (mean(rows, [experiment], variant, name) for name in (KEYS, metric))
            if x is not None and y is not None:
                half = 0.0 if math.isnan(y.half) else y.half
                points.setdefault(method_of(variant), []).append((x.mean, y.mean, half))
    if not points:
        return None
    figure, axes = make_axes(4.4)
    for number, (method, own) in enumerate(points.items()):
        _draw(axes, method, sorted(own), number, 100 if "accuracy" in metric else 1)
    if "accuracy" in metric:
        axes.set_ylim(max(-3, axes.get_ylim()[0]), min(103, axes.get_ylim()[1]))
    axes.set_xlabel(LABEL)
    axes.set_ylabel("per cent" if "accuracy" in metric else metric)
    axes.grid(color=GRID, lw=0.8)
    figure.legend(fontsize=7, frameon=False, loc="outside upper left", labelcolor=INK, ncols=3)
    return to_svg(figure)


def _draw(axes: Any, method: str, points: Sequence[tuple[float, float, float]], number: int, scale: int) -> None:
    xs, ys, halves = zip(*points, strict=True)
    if len(points) == 1 and number == 0:
        axes.axhline(scale * ys[0], color=FAINT, lw=1.2, ls="--", label=plain(method))
        return
    (colour, shape), again = LOOKS[(number - 1) % len(LOOKS)], number > len(LOOKS)
    look = {"ls": "--", "mfc": "white"} if again else {"ls": "-"}
    axes.errorbar(
        xs, [scale * y for y in ys], yerr=[scale * h for h in halves], marker=shape, color=colour, ms=5, lw=1.3,
        elinewidth=0.8, capsize=2, label=plain(method), **look,
    )  # fmt: skip
