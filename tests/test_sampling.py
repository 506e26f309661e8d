"""The quick suite's samples hold every pair of values, and are the same each time; --all leaves nothing out."""

import os
from itertools import combinations, product
from pathlib import Path

import pytest

from nsa_testing import covering

pytest_plugins = ["pytester"]

CONFTEST = Path(__file__).with_name("conftest.py")
CASES = """
import pytest

@pytest.mark.pairwise
@pytest.mark.parametrize("a", [[1], {2: 3}, None])
@pytest.mark.parametrize(("b", "c"), [(1, 2), (3, 4), (5, 4)])
@pytest.mark.parametrize("d", [0, 1])
def test_product(a, b, c, d): ...

@pytest.mark.pairwise
@pytest.mark.parametrize("a", [1, 2])
def test_single(a): ...

@pytest.mark.singly
@pytest.mark.parametrize("a", [1, 2])
@pytest.mark.parametrize("b", [1, 2, 3])
def test_each_value(a, b): ...

@pytest.mark.parametrize("a", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_slow(a): ...
"""


def pairs(rows):
    return {pair for row in rows for pair in combinations(sorted(row.items()), 2)}


def rows_of(**columns):
    return [dict(zip(columns, values, strict=True)) for values in product(*columns.values())]


@pytest.mark.parametrize(
    ("columns", "most"),
    [
        ({"a": range(9), "b": range(4), "c": range(4), "d": range(2)}, 40),
        ({"a": range(2), "b": range(2), "c": range(3), "d": range(2), "e": range(3)}, 12),
        ({"a": range(5), "b": "xy"}, 10),
    ],
    ids=str,
)
def test_every_pair_is_in_the_sample(columns, most):
    rows = rows_of(**columns)
    kept = covering(rows)
    assert pairs([rows[i] for i in kept]) == pairs(rows)
    assert len(kept) <= most and kept == sorted(set(kept)) == covering(rows)


def test_singly_every_value_is_in_the_sample():
    rows = rows_of(a=range(5), b=range(3), c="xy")
    kept = [rows[i] for i in covering(rows, 1)]
    assert len(kept) == 5 and {item for row in kept for item in row.items()} == {i for row in rows for i in row.items()}


def test_pairs_that_never_meet_are_not_asked_for():
    rows = [row for row in rows_of(a=range(4), b=range(4), c=range(4)) if row["a"] != row["b"]]
    kept = [rows[i] for i in covering(rows)]
    assert pairs(kept) == pairs(rows) and len(kept) < len(rows)


def test_rows_of_one_column_and_of_none():
    assert covering([{"a": 1}, {"a": 2}, {"a": 1}]) in ([0, 1], [1, 2])
    assert covering([{}]) == [0] and covering([]) == []


@pytest.mark.parametrize(
    ("arguments", "count"),
    [((), 9 + 2 + 3 + 1), (("--all",), 18 + 2 + 6 + 2), (("test_it.py::test_product",), 18), (("-k", "single"), 2)],
    ids=str,
)
def test_what_an_option_runs(pytester, monkeypatch, arguments, count):
    monkeypatch.setenv("PYTHONPATH", os.environ["PYTHONPATH"])  # which the conftest sets
    pytester.makeconftest(CONFTEST.read_text())
    pytester.makepyfile(test_it=CASES)
    pytester.runpytest_inprocess("-p", "no:cacheprovider", *arguments).assert_outcomes(passed=count)
