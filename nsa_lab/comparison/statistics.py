"""Means with intervals and paired tests, for a handful of seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and half the width of its two-sided 95% interval under Student's t; nan for one value."""

    mean: float
    half: float
    count: int


@dataclass(frozen=True)
class PairedTest:
    """Differences of pairs: their mean and interval, and the p-values of the t-test and of all sign flips."""

    difference: Interval
    t_test: float
    sign_flip: float


def interval(values: Sequence[float]) -> Interval:
    """The mean of `values` with its 95% interval."""
    count, mean = len(values), math.fsum(values) / len(values)
    if count == 1:
        return Interval(mean, math.nan, 1)
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1) / count)
    return Interval(mean, t_quantile((1 + CONFIDENCE) / 2, count - 1) * error, count)


def paired_test(values: Sequence[float], others: Sequence[float]) -> PairedTest:
    """Two-sided tests of values[i] - others[i] against zero. Needs two pairs or more."""
    differences = [value - other for value, other in zip(values, others, strict=True)]
    return PairedTest(interval(differences), _t_test(differences), sign_flip_test(differences))


def sign_flip_test(differences: Sequence[float]) -> float:
    """Exact: the share of all 2^n sign patterns whose |sum| is as great as the one found. At best 2 / 2^n."""
    found = abs(math.fsum(differences))
    limit = found - 1e-12 * math.fsum(abs(d) for d in differences)  # equal sums may differ in the last bit
    sums = [
        abs(math.fsum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in product((1, -1), repeat=len(differences))
    ]
    return sum(value >= limit for value in sums) / len(sums)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for having tested all of them (Holm 1979), in the order given."""
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = worst
    return adjusted


def t_cdf(t: float, freedom: int) -> float:
    """Student's distribution function for whole degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    term = math.cos(angle) if freedom % 2 else 1.0
    total = 0.0
    for step in range(freedom // 2):
        total += term
        below = 2 * step + 1 + freedom % 2
        term *= math.cos(angle) ** 2 * below / (below + 1)
    inside = (angle + math.sin(angle) * total) * 2 / math.pi if freedom % 2 else math.sin(angle) * total
    return (1 + inside) / 2


def t_quantile(share: float, freedom: int) -> float:
    """The t below which `share` (0.5 or more) of Student's distribution lies, by bisection."""
    low, high = 0.0, 1.0
    while t_cdf(high, freedom) < share:
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, freedom) < share else (low, middle)
    return high


def _t_test(differences: Sequence[float]) -> float:
    count, mean = len(differences), math.fsum(differences) / len(differences)
    spread = math.fsum((d - mean) ** 2 for d in differences)
    if spread == 0:
        return 1.0 if mean == 0 else 0.0
    t = mean / math.sqrt(spread / (count - 1) / count)
    return 2 * (1 - t_cdf(abs(t), count - 1))
