"""The statistics against printed tables and worked examples."""

import itertools
import math

import numpy as np
import pytest

from nsa_lab.comparison.statistics import holm, interval, paired_test, sign_flip_test, smallest_sign_flip


def test_an_interval_by_hand():
    found = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.mean, found.count) == (3.0, 5)
    assert found.half == pytest.approx(2.776445 * math.sqrt(2.5 / 5), rel=1e-6)


def test_fewer_than_three_seeds_have_a_mean_and_no_more():
    found = interval([0.4, 0.8])
    assert (found.mean, found.count) == (pytest.approx(0.6), 2) and math.isnan(found.half)
    test = paired_test([0.6, 0.5], [0.5, 0.4])
    assert test.difference.mean == pytest.approx(0.1)
    assert math.isnan(test.t_test) and math.isnan(test.sign_flip), "two equal differences prove nothing"


@pytest.mark.slow
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


def share_of_patterns(differences):
    """Over every sign pattern; exact for whole numbers."""
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
            for signs in itertools.product((1, -1), repeat=len(differences))]  # fmt: skip
    return sum(value >= sums[0] for value in sums) / len(sums)


def test_sign_flips_count_every_pattern():
    assert sign_flip_test([3.0, -1.0, 2.0]) == share_of_patterns([3, -1, 2]) == 0.5
    assert sign_flip_test([0.1] * 5) == smallest_sign_flip(5) == 2 / 32
    assert sign_flip_test([0.0, 0.0]) == 1.0


def test_sums_that_are_equal_but_for_rounding_count_as_equal():
    rng = np.random.default_rng(0)
    for _ in range(300):
        right = rng.integers(110, 121, size=(2, rng.integers(3, 9)))
        found = paired_test((right[0] / 120).tolist(), (right[1] / 120).tolist())
        assert found.sign_flip == share_of_patterns((right[0] - right[1]).tolist())


def test_of_many_pairs_a_sample_of_the_patterns_is_counted_the_same_at_every_call():
    differences = np.random.default_rng(0).integers(-20, 31, size=16).tolist()
    found = sign_flip_test(differences)
    assert found == sign_flip_test(differences) != share_of_patterns(differences)
    assert found == pytest.approx(share_of_patterns(differences), abs=0.015)  # four standard errors
    assert sign_flip_test([0.1] * 14) == smallest_sign_flip(14) > sign_flip_test([0.1] * 16) == smallest_sign_flip(16)


@pytest.mark.slow
def test_p_values_are_uniform_when_nothing_differs():
    rng = np.random.default_rng(0)
    found = [paired_test(rng.normal(size=6).tolist(), rng.normal(size=6).tolist()) for _ in range(2000)]
    for name in ("t_test", "sign_flip"):
        p = np.array([getattr(test, name) for test in found])
        assert 0.035 < (p <= 0.0625).mean() < 0.085, name


@pytest.mark.filterwarnings("error")
def test_equal_pairs_are_no_evidence_and_equal_differences_are():
    assert paired_test([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]).t_test == 1.0
    assert paired_test([1.0, 2.0, 3.0], [0.5, 1.5, 2.5]).t_test == 0.0
    assert paired_test([0.6, 0.5, 0.4], [0.5, 0.4, 0.3]).t_test == 0.0, "the differences are equal but for rounding"


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    untested, *tested = holm([math.nan, 0.01, 0.04])
    assert math.isnan(untested) and tested == pytest.approx([0.02, 0.04])
