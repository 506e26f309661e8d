"""From rows to tables: means with intervals, and differences from the references with their p-values."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nsa_lab.comparison.rows import Row, in_order
from nsa_lab.comparison.spec import Comparison
from nsa_lab.comparison.statistics import Interval, PairedTest, holm, interval, paired_test

LEVEL = 0.05


@dataclass(frozen=True)
class Mean:
    """One variant's mean of one metric on one experiment."""

    experiment: str
    metric: str
    variant: str
    value: Interval


@dataclass(frozen=True)
class Difference:
    """A variant minus a reference, paired by seed; p-values adjusted for all variants tested against the reference."""

    experiment: str
    metric: str
    variant: str
    reference: str
    test: PairedTest
    t_test_holm: float
    sign_flip_holm: float


def metric_values(rows: Sequence[Row], experiment: str, variant: str, metric: str) -> dict[int, float]:
    """A metric by seed."""
    return {
        int(row["seed"]): float(row[metric])
        for row in rows
        if (row["experiment"], row["variant"]) == (experiment, variant) and row.get(metric)
    }


def experiments_of(comparison: Comparison, rows: Sequence[Row]) -> list[str]:
    return in_order((row["experiment"] for row in rows), [path.stem for path in comparison.experiments])


def variants_of(comparison: Comparison, rows: Sequence[Row]) -> list[str]:
    return in_order((row["variant"] for row in rows), list(comparison.variants))


def means(comparison: Comparison, rows: Sequence[Row], metrics: Sequence[str]) -> list[Mean]:
    """Every variant's mean of each of `metrics` on each experiment, where it was measured."""
    found = []
    for experiment in experiments_of(comparison, rows):
        for variant in variants_of(comparison, rows):
            for metric in metrics:
                values = metric_values(rows, experiment, variant, metric)
                if values:
                    found.append(Mean(experiment, metric, variant, interval(list(values.values()))))
    return found


def differences(comparison: Comparison, rows: Sequence[Row]) -> list[Difference]:
    """Every variant against every reference, on the seeds that both have (two or more).

    One family of hypotheses, over which Holm's adjustment runs, is an experiment, a metric and a reference.
    """
    found = []
    for experiment in experiments_of(comparison, rows):
        for metric in comparison.metrics:
            for reference in comparison.references:
                found += _family(rows, experiment, metric, reference, variants_of(comparison, rows))
    return found


def better(difference: Difference, direction: str) -> bool:
    """Whether the variant's mean is on the good side of the reference's."""
    mean = difference.test.difference.mean
    return mean > 0 if direction == "maximize" else mean < 0


def significant(difference: Difference) -> bool:
    """Whether the adjusted t-test is below LEVEL."""
    return not math.isnan(difference.t_test_holm) and difference.t_test_holm < LEVEL


def _family(
    rows: Sequence[Row], experiment: str, metric: str, reference: str, variants: Sequence[str]
) -> list[Difference]:
    against = metric_values(rows, experiment, reference, metric)
    tests: dict[str, PairedTest] = {}
    for variant in variants:
        mine = metric_values(rows, experiment, variant, metric)
        seeds = sorted(set(mine) & set(against))
        if variant != reference and len(seeds) >= 2:
            tests[variant] = paired_test([mine[s] for s in seeds], [against[s] for s in seeds])
    by_t = holm([test.t_test for test in tests.values()])
    by_flips = holm([test.sign_flip for test in tests.values()])
    return [
        Difference(experiment, metric, variant, reference, test, p_t, p_flip)
        for (variant, test), p_t, p_flip in zip(tests.items(), by_t, by_flips, strict=True)
    ]
