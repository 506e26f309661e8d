"""What several processes train, beside what one does."""

import pytest

from nsa_lab.training.directory import read_series

TIMES = ("throughput/", "partition/share_of_step")
TOLERANCE = {"rel": 1e-5, "abs": 1e-6}
"""Sums in float32 in another order."""


def curves(directory):
    series = read_series(directory / "metrics.jsonl")
    return {name: values for name, values in series.items() if not name.startswith(TIMES)}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name] == pytest.approx(b[name], **TOLERANCE), name
