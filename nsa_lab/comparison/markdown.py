"""A comparison as Markdown: what RESULTS.md is made of."""

import ast
import math
from collections.abc import Iterable, Sequence

from nsa_lab.comparison.rows import ORIGIN, Row
from nsa_lab.comparison.spec import Comparison
from nsa_lab.comparison.statistics import EXACT_PAIRS, FLIPS, Interval, smallest_sign_flip
from nsa_lab.comparison.tables import (
    LEVEL,
    Difference,
    better,
    differences,
    experiments_of,
    means,
    metric_values,
    significant,
    variants_of,
)

COSTS = {
    "budget/keys_per_query": "keys per query",
    "budget/keys_per_query_with_compressed": "with pooled keys",
    "throughput/seconds_per_step": "seconds per step",
}


def to_markdown(comparison: Comparison, rows: Sequence[Row], title: str, findings: str = "") -> str:
    """A section: what was found in the rows of a comparison, tables, conclusions and origin."""
    tests = differences(comparison, rows)
    parts = [f"## {title}", *([findings] if findings else []), _how_to_read(comparison, rows)]
    for experiment in experiments_of(comparison, rows):
        parts += [f"### {experiment}", _means_table(comparison, rows, experiment)]
        for metric in comparison.metrics:
            mine = [test for test in tests if (test.experiment, test.metric) == (experiment, metric)]
            if mine:
                parts += [f"{metric}: difference from", _differences_table(comparison, mine)]
        parts.append("\n".join(_conclusions(comparison, tests, experiment)))
    return "\n\n".join([*parts, _origin(comparison, rows)]) + "\n"


def format_interval(metric: str, value: Interval, sign: str = "") -> str:
    """`0.1234 ± 0.0012`; accuracies in per cent."""
    percent = "accuracy" in metric
    scale, digits = (100, 1) if percent else (1, 4)
    half = "" if math.isnan(value.half) else f" ± {scale * value.half:.{digits}f}"
    return f"{scale * value.mean:{sign}.{digits}f}{half}{' %' if percent else ''}"


def question(comparison: Comparison) -> str:
    """The first paragraph of the file's docstring."""
    return (ast.get_docstring(ast.parse(comparison.path.read_text())) or "").split("\n\n")[0]


def _how_to_read(comparison: Comparison, rows: Sequence[Row]) -> str:
    counts = sorted({len(_seeds(rows, e, v)) for e in experiments_of(comparison, rows)
                     for v in variants_of(comparison, rows)})  # fmt: skip
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    steps = ", ".join(sorted({row["steps"] for row in rows}, key=int))
    flips = "the exact sign-flip test"
    if counts[-1] > EXACT_PAIRS:
        flips = f"the sign-flip test (exact up to {EXACT_PAIRS} seeds, beyond from {FLIPS} random patterns)"
    limit = ", ".join(f"{smallest_sign_flip(count):.4g} for {count}" for count in counts if count >= 2)
    return (
        f"{seeds} seeds, {steps} steps each, validation clips never trained on. `±` is the 95% interval of the mean"
        " (Student's t over seeds), of one design or difference alone. Differences are paired by seed; p-values are"
        f" two-sided, first the paired t-test, then {flips}, both adjusted by Holm over all designs"
        " tested against the same reference, which the intervals are not;"
        f" before that adjustment a sign-flip test cannot go below {limit or 'anything: one seed'}."
    )


def _means_table(comparison: Comparison, rows: Sequence[Row], experiment: str) -> str:
    names = [*comparison.metrics, *COSTS]
    found = {(m.variant, m.metric): m.value for m in means(comparison, rows, names) if m.experiment == experiment}
    lines = []
    for variant in variants_of(comparison, rows):
        if not _seeds(rows, experiment, variant):
            continue
        quality = [format_interval(m, found[variant, m]) if (variant, m) in found else "" for m in comparison.metrics]
        cost = [f"{found[variant, c].mean:.4g}" if (variant, c) in found else "" for c in COSTS]
        lines.append([variant, *quality, *cost, str(len(_seeds(rows, experiment, variant)))])
    arrows = [f"{m} {'↑' if way == 'maximize' else '↓'}" for m, way in comparison.metrics.items()]
    return _table(["design", *arrows, *COSTS.values(), "seeds"], lines)


def _differences_table(comparison: Comparison, tests: Sequence[Difference]) -> str:
    cells = {(test.variant, test.reference): _cell(test) for test in tests}
    references = [name for name in comparison.references if any(test.reference == name for test in tests)]
    variants = list(dict.fromkeys(test.variant for test in tests))
    lines = [[v, *(cells.get((v, r), "") for r in references)] for v in variants]
    return _table(["design", *references], lines)


def _cell(test: Difference) -> str:
    mean = format_interval(test.metric, test.test.difference, "+")
    mark = "**" if significant(test) else ""
    return f"{mark}{mean}{mark} (p {test.t_test_holm:.2g}, {test.sign_flip_holm:.2g})"


def _conclusions(comparison: Comparison, tests: Sequence[Difference], experiment: str) -> Iterable[str]:
    """One sentence per metric and reference, by the adjusted t-test alone."""
    for metric, direction in comparison.metrics.items():
        for reference in comparison.references:
            family = [t for t in tests if (t.experiment, t.metric, t.reference) == (experiment, metric, reference)]
            if not family:
                continue
            up = [t.variant for t in family if significant(t) and better(t, direction)]
            down = [t.variant for t in family if significant(t) and not better(t, direction)]
            said = [f"better than `{reference}`: {', '.join(up)}"] * bool(up)
            said += [f"worse than `{reference}`: {', '.join(down)}"] * bool(down)
            if not said:
                widest = max((t.test.difference for t in family), key=lambda value: abs(value.mean) + value.half)
                reach = format_interval(metric, widest, "+")
                said = [f"no design differs from `{reference}`; the widest interval of a difference is {reach}"]
            yield f"- {metric}, adjusted p < {LEVEL} (t-test): {'; '.join(said)}."


def _origin(comparison: Comparison, rows: Sequence[Row]) -> str:
    lines = [f"- {name}: {', '.join(sorted({row[name] for row in rows}))}" for name in ORIGIN]
    hashes: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        hashes.setdefault((row["experiment"], row["variant"]), []).append(row["config_hash"])
    first = [[e, v, " ".join(sorted(set(found)))] for (e, v), found in sorted(hashes.items())]
    table = _table(["experiment", "design", "config hashes, one per seed"], first)
    return "\n".join(
        ["Where the numbers come from:", "", f"- comparison: `{comparison.path}`", *lines, "",
         f"<details><summary>config hashes of the {len(rows)} trainings</summary>", "", table, "", "</details>"]
    )  # fmt: skip


def _seeds(rows: Sequence[Row], experiment: str, variant: str) -> list[int]:
    return sorted(metric_values(rows, experiment, variant, "val/loss"))


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rule, *lines])
