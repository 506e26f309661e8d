"""A comparison's tables and what they say, for all tasks together and for each of them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from nsa_lab.comparison.grid import Grid
from nsa_lab.comparison.rows import Row
from nsa_lab.comparison.spec import TASK_ACCURACY, Comparison
from nsa_lab.comparison.statistics import FEWEST, Interval
from nsa_lab.comparison.tables import (
    LEVEL,
    Difference,
    differences,
    experiments_of,
    mean,
    metric_values,
    variants_of,
)
from nsa_lab.runner.view import number

MARK = "✓"
RATIO = "budget/ratio_to_dense"
COSTS = {
    "budget/keys_per_query": "keys per query",
    RATIO: "of dense",
    "budget/keys_per_query_with_compressed": "with pooled keys",
    "throughput/seconds_per_step": "seconds per step",
}
PAST = (
    "An interval of an accuracy may reach past 0 or 100 %: Student's is symmetric about the mean, and is shown uncut,"
    " so that widths can be compared."
)
Column = tuple[str, str, Sequence[str]]
"""A heading, and the metric whose mean over experiments stands below it."""


@dataclass(frozen=True)
class Section:
    """The tables of one task or of all, and a sentence for each family of tests; `note` says whose weights."""

    title: str
    grids: list[Grid]
    conclusions: list[str]
    note: str = ""


def sections(comparison: Comparison, rows: Sequence[Row]) -> list[Section]:
    """All tasks, where there are several, then each."""
    experiments, variants = experiments_of(comparison, rows), variants_of(comparison, rows)
    arrows = {m: f"{_short(m)} {'↑' if way == 'maximize' else '↓'}" for m, way in comparison.metrics.items()}
    found, joint = [], []
    for metric, arrow in arrows.items():
        each: list[Column] = [(name, metric, [name]) for name in experiments]
        average: list[Column] = [] if _alike(comparison) else [("average", metric, experiments)]
        joint.append(_means(f"mean {arrow}", rows, variants, experiments, [*each, *average]))
    if len(experiments) > 1:
        found.append(Section("side by side" if _alike(comparison) else "all tasks", joint, []))
    for name in experiments:
        tests = [test for test in differences(comparison, rows) if test.experiment == name]
        columns: list[Column] = [(arrow, metric, [name]) for metric, arrow in arrows.items()]
        families = [[test for test in tests if test.metric == metric] for metric in arrows]
        grids = [
            _means("means", rows, variants, [name], columns, _marks(comparison)),
            *(_tests(comparison, f) for f in families if f),
        ]
        found.append(Section(name, grids, list(_conclusions(comparison, tests)), _whose_weights(comparison, name)))
    return found


def footnotes(comparison: Comparison, rows: Sequence[Row]) -> list[str]:
    """What the tables' figures alone would leave open: means without an interval, and intervals past 0 or 100%."""
    places = product(comparison.metrics, experiments_of(comparison, rows), variants_of(comparison, rows))
    means = [(metric, mean(rows, [experiment], variant, metric)) for metric, experiment, variant in places]
    found = [(metric, value) for metric, value in means if value is not None]
    few = sorted({value.count for _, value in found if math.isnan(value.half)})
    past = [v for metric, v in found if "accuracy" in metric and (v.mean - v.half < 0 or v.mean + v.half > 1)]
    counts = ", ".join(f"(n={count})" for count in few)
    return [f"{counts}: fewer than {FEWEST} seeds have a mean and no interval."] * bool(few) + [PAST] * bool(past)


def _whose_weights(comparison: Comparison, name: str) -> str:
    for one in comparison.experiments:
        if one.name == name and one.weights is not None:
            theirs = f"validated with the weights of {one.design} as trained in {one.weights}"
            own = f", but {', '.join(one.converted)} with their own from there" if one.converted else ""
            return f"Nothing is trained here: {theirs}{own}."
    return ""


def _short(metric: str) -> str:
    """A task's accuracy is called by the task."""
    return metric.removeprefix(TASK_ACCURACY)


def format_value(metric: str, value: float) -> str:
    """A single number; accuracies in per cent."""
    scale, digits, unit = _unit(metric)
    return f"{scale * value:.{digits}f}{unit}"


def _unit(metric: str) -> tuple[int, int, str]:
    """By what a metric is multiplied, its digits, and the sign behind it."""
    return (100, 1, " %") if "accuracy" in metric else (1, 4, "")


def format_interval(metric: str, value: Interval | None, sign: str = "") -> str:
    """`0.1234 ± 0.0012`, or `0.1234 (n=2)` of too few seeds; accuracies in per cent.

    An interval is never cut, as PAST says where one reaches beyond what an accuracy can be.
    """
    if value is None:
        return ""
    scale, digits, unit = _unit(metric)
    middle = f"{scale * value.mean:{sign}.{digits}f}"
    if math.isnan(value.half):
        return f"{middle}{unit} (n={value.count})"
    return f"{middle} ± {scale * value.half:.{digits}f}{unit}"


def _means(title: str, rows: Sequence[Row], variants: Sequence[str], scope: Sequence[str],
           columns: Sequence[Column], marks: Mapping[str, Mapping[str, str]] | None = None) -> Grid:  # fmt: skip
    """Designs x `columns`, with `marks`, what they cost and the number of seeds on all of `scope`."""
    marks = marks or {}
    lines = []
    for v in variants:
        quality = [format_interval(metric, mean(rows, where, v, metric)) for _, metric, where in columns]
        if not any(quality):
            continue
        costs = [_cost(name, mean(rows, scope, v, name)) for name in COSTS]
        lines.append(
            [
                v,
                *(marks[mark].get(v, "") for mark in marks),
                *quality,
                *costs,
                str(len(metric_values(rows, scope, v, "val/loss")) or ""),
            ]
        )
    head = ["design", *marks, *(heading for heading, _, _ in columns), *COSTS.values(), "seeds"]
    return Grid(title, head, lines).filled()


def _marks(comparison: Comparison) -> dict[str, dict[str, str]]:
    """MARK or nothing by branch and design, where designs have different branches."""
    sets = comparison.branches
    every = dict.fromkeys(branch for own in sets.values() for branch in own)
    differ = len({own for own in sets.values() if own}) > 1
    return {b: {name: MARK * (b in own) for name, own in sets.items()} for b in every} if differ else {}


def _alike(comparison: Comparison) -> bool:
    """Whether some experiments are readings of one, over which nothing is averaged."""
    return len({experiment.file for experiment in comparison.experiments}) < len(comparison.experiments)


def _cost(name: str, value: Interval | None) -> str:
    if value is None:
        return ""
    return f"{100 * value.mean:.3g} %" if name == RATIO else number(value.mean)


def _tests(comparison: Comparison, tests: Sequence[Difference]) -> Grid:
    cells = {(test.variant, test.reference): _cell(test) for test in tests}
    variants = dict.fromkeys(test.variant for test in tests)
    lines = [[v, *(cells.get((v, r), "") for r in comparison.references)] for v in variants]
    return Grid(f"{tests[0].metric}: difference from", ["design", *comparison.references], lines).filled()


def _cell(test: Difference) -> str:
    value = format_interval(test.metric, test.test.difference, "+")
    if math.isnan(test.t_test_holm):
        return value
    mark = "**" if test.significant else ""
    return f"{mark}{value}{mark} (p {test.t_test_holm:.2g}, {test.sign_flip_holm:.2g})"


def _conclusions(comparison: Comparison, tests: Sequence[Difference]) -> Iterator[str]:
    """One sentence per metric and reference, by the adjusted t-test alone."""
    for metric, direction in comparison.metrics.items():
        for reference in comparison.references:
            family = [t for t in tests if (t.metric, t.reference) == (metric, reference)]
            tested = [t for t in family if not math.isnan(t.t_test_holm)]
            if not tested:
                if family:
                    yield f"{metric}: too few seeds for a test against `{reference}`."
                continue
            up = [t.variant for t in tested if t.significant and t.better(direction)]
            down = [t.variant for t in tested if t.significant and not t.better(direction)]
            said = [f"better than `{reference}`: {', '.join(up)}"] * bool(up)
            said += [f"worse than `{reference}`: {', '.join(down)}"] * bool(down)
            if not said:
                widest = max((t.test.difference for t in tested), key=lambda value: abs(value.mean) + value.half)
                reach = format_interval(metric, widest, "+")
                said = [f"no design differs from `{reference}`; the widest interval of a difference is {reach}"]
            yield f"{metric}, adjusted p < {LEVEL} (t-test): {'; '.join(said)}."
