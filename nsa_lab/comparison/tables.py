"""From rows to numbers: means with intervals, and differences from the references with their p-values."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean

from nsa_lab.comparison.rows import Row, in_order
from nsa_lab.comparison.spec import START, Comparison
from nsa_lab.comparison.statistics import Interval, PairedTest, holm, interval, paired_test

LEVEL = 0.05


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

    @property
    def significant(self) -> bool:
        """Whether the adjusted t-test is below LEVEL."""
        return self.t_test_holm < LEVEL

    def better(self, direction: str) -> bool:
        """Whether the variant's mean is on the good side of the reference's."""
        return (self.test.difference.mean > 0) == (direction == "maximize")


def experiments_of(comparison: Comparison, rows: Sequence[Row]) -> list[str]:
    return in_order((row["experiment"] for row in rows), [one.name for one in comparison.experiments])


def variants_of(comparison: Comparison, rows: Sequence[Row]) -> list[str]:
    return in_order((row["variant"] for row in rows), [START, *comparison.variants])


def metric_values(rows: Sequence[Row], experiments: Sequence[str], variant: str, metric: str) -> dict[int, float]:
    """A metric by seed: its mean over `experiments`, where all of them measured it."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if row["variant"] == variant and row["experiment"] in experiments and row.get(metric):
            found.setdefault(int(row["seed"]), []).append(float(row[metric]))
    return {seed: fmean(values) for seed, values in found.items() if len(values) == len(experiments)}


def mean(rows: Sequence[Row], experiments: Sequence[str], variant: str, metric: str) -> Interval | None:
    """A metric's mean over the seeds that were measured; None without any."""
    values = list(metric_values(rows, experiments, variant, metric).values())
    return interval(values) if values else None


def differences(comparison: Comparison, rows: Sequence[Row]) -> list[Difference]:
    """Every variant against every reference, on the seeds that both have.

    One family of hypotheses, over which Holm's adjustment runs, is an experiment, a metric and a reference.
    """
    families = product(experiments_of(comparison, rows), comparison.metrics, comparison.references)
    variants = variants_of(comparison, rows)
    return [found for family in families for found in _differences(rows, *family, variants)]


def _differences(
    rows: Sequence[Row], experiment: str, metric: str, reference: str, variants: Sequence[str]
) -> Iterator[Difference]:
    against = metric_values(rows, [experiment], reference, metric)
    tests: dict[str, PairedTest] = {}
    for variant in variants:
        mine = metric_values(rows, [experiment], variant, metric)
        seeds = sorted(set(mine) & set(against))
        if variant not in (reference, START) and seeds:
            tests[variant] = paired_test([mine[s] for s in seeds], [against[s] for s in seeds])
    by_t = holm([test.t_test for test in tests.values()])
    by_flips = holm([test.sign_flip for test in tests.values()])
    for (variant, test), p_t, p_flip in zip(tests.items(), by_t, by_flips, strict=True):
        yield Difference(experiment, metric, variant, reference, test, p_t, p_flip)
