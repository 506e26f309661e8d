"""The statistics against printed tables and worked examples."""

import itertools
import math

import numpy as np
import pytest

from nsa_lab.comparison.statistics import holm, interval, paired_test, sign_flip_test, t_cdf, t_quantile


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (5, 2.57058), (9, 2.26216), (30, 2.04227)],
)
def test_quantiles_of_the_printed_table(freedom, quantile):
    assert t_quantile(0.975, freedom) == pytest.approx(quantile, abs=5e-5 * quantile)
    assert t_cdf(quantile, freedom) == pytest.approx(0.975, abs=1e-5)
    assert t_cdf(-quantile, freedom) == pytest.approx(0.025, abs=1e-5)


@pytest.mark.parametrize("freedom", [1, 2, 3, 6, 11])
def test_the_distribution_function_is_the_integral_of_the_density(freedom):
    x = np.linspace(0, 2.3, 200_001)
    density = (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
    density *= math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(freedom * math.pi)
    assert t_cdf(2.3, freedom) == pytest.approx(0.5 + np.trapezoid(density, x), abs=1e-9)


def test_an_interval_by_hand():
    found = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.mean, found.count) == (3.0, 5)
    assert found.half == pytest.approx(2.776445 * math.sqrt(2.5 / 5), rel=1e-6)
    assert math.isnan(interval([0.4]).half)


def test_intervals_hold_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    found = [interval(rng.normal(1.0, 3.0, size=5).tolist()) for _ in range(4000)]
    assert 0.94 < np.mean([abs(i.mean - 1.0) <= i.half for i in found]) < 0.96


def test_a_paired_test_by_hand():
    # Student's sleep data: ten patients, two drugs; t = -4.0621 with 9 degrees of freedom, p = 0.002833.
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    found = paired_test(first, second)
    assert found.t_test == pytest.approx(0.002833, abs=1e-6)
    assert found.difference.mean == pytest.approx(-1.58)
    # No difference is positive, one is zero: only the two patterns of equal signs, times two for the zero.
    assert found.sign_flip == 4 / 1024


def test_sign_flips_count_every_pattern():
    differences = [3.0, -1.0, 2.0]
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
            for signs in itertools.product((1, -1), repeat=3)]  # fmt: skip
    assert sign_flip_test(differences) == sum(value >= 4 for value in sums) / 8 == 0.5
    assert sign_flip_test([0.1] * 5) == 2 / 32
    assert sign_flip_test([0.0, 0.0]) == 1.0


def test_p_values_are_uniform_when_nothing_differs():
    rng = np.random.default_rng(0)
    found = [paired_test(rng.normal(size=6).tolist(), rng.normal(size=6).tolist()) for _ in range(2000)]
    for name in ("t_test", "sign_flip"):
        p = np.array([getattr(test, name) for test in found])
        assert 0.035 < (p <= 0.0625).mean() < 0.085, name


def test_equal_pairs_are_no_evidence_and_equal_differences_are():
    assert paired_test([1.0, 2.0], [1.0, 2.0]).t_test == 1.0
    assert paired_test([1.0, 2.0], [0.5, 1.5]).t_test == 0.0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
