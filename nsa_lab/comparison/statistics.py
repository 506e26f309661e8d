"""Means with intervals and paired tests, for a handful of seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
EXACT_PAIRS = 14
FLIPS = 2**EXACT_PAIRS
FEWEST = 3
"""Of fewer values the interval says nothing (at two, Student's t is 12.7), and equal differences are soon found."""
ROUNDING = 1e-12
"""Differences that are equal on paper, such as 3/120 - 2/120 and 118/120 - 117/120, are equal within this share."""


@dataclass(frozen=True)
class Interval:
    """A mean and half the width of its two-sided 95% interval under Student's t; nan for fewer than FEWEST values."""

    mean: float
    half: float
    count: int


@dataclass(frozen=True)
class PairedTest:
    """Differences of pairs: their mean and interval, and the p-values of the t-test and of sign flips.

    These are nan for fewer than FEWEST pairs.
    """

    difference: Interval
    t_test: float
    sign_flip: float


def interval(values: Sequence[float]) -> Interval:
    """The mean of `values` with its 95% interval."""
    count, mean = len(values), math.fsum(values) / len(values)
    if count < FEWEST:
        return Interval(mean, math.nan, count)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * stats.sem(values)
    return Interval(mean, float(half), count)


def share_interval(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share of `hits` in `count` independent trials; nan without any."""
    if not count:
        return math.nan, math.nan
    found = stats.binomtest(hits, count).proportion_ci(CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


def paired_test(values: Sequence[float], others: Sequence[float]) -> PairedTest:
    """Two-sided tests of values[i] - others[i] against zero."""
    differences = [value - other for value, other in zip(values, others, strict=True)]
    if len(differences) < FEWEST:
        return PairedTest(interval(differences), math.nan, math.nan)
    return PairedTest(interval(differences), _t_test(differences), sign_flip_test(differences))


def sign_flip_test(differences: Sequence[float]) -> float:
    """The share of all sign patterns whose |sum| is as great as the one found; at best `smallest_sign_flip`.

    Exact up to EXACT_PAIRS differences, beyond from FLIPS random patterns, the same at every call.
    """
    test = stats.permutation_test(
        [differences],
        lambda flipped, axis: abs(flipped.sum(axis=axis)),
        permutation_type="samples",
        n_resamples=FLIPS,
        rng=0,
    )
    # scipy's own p-value takes sums for equal within 2e-14 of the sum found: too little where differences cancel.
    as_great = test.null_distribution >= test.statistic - ROUNDING * np.abs(differences).sum()
    found = len(differences) > EXACT_PAIRS  # a random sample need not hold the pattern found
    return float((as_great.sum() + found) / (as_great.size + found))


def smallest_sign_flip(count: int) -> float:
    """The smallest p-value that the sign-flip test of `count` pairs can give."""
    return 2.0 / 2**count if count <= EXACT_PAIRS else 1.0 / (FLIPS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for having tested all of them (Holm 1979), in the order given; nan is no test and stays nan."""
    tested = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    adjusted, worst = [math.nan] * len(p_values), 0.0
    for rank, (p, place) in enumerate(tested):
        worst = max(worst, min(1.0, (len(tested) - rank) * p))
        adjusted[place] = worst
    return adjusted


def _t_test(differences: Sequence[float]) -> float:
    if np.ptp(differences) <= ROUNDING * np.abs(differences).max():  # no spread to divide by
        return 0.0 if any(differences) else 1.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)
