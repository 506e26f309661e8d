"""One layer's prefill by method: what is measured, and what it says was read."""

import csv
import math

import pytest

from nsa_lab.attention.methods import METHODS
from nsa_lab.bench import prefill_point
from nsa_lab.bench.measure import Point
from nsa_lab.bench.prefill import run_prefill
from nsa_lab.bench.prefill_point import measure_prefill
from nsa_lab.config import load_config, to_dict
from nsa_lab.errors import NsaLabError
from nsa_testing import tiny_config

ASKED = ("training.accelerator=cpu", "training.threads=1", "attention.a_shape={initial: 4, local: 60}")


def measured(name, kind="random", tokens=192):
    tree = to_dict(tiny_config(*ASKED, f"attention.method={name}", "model.num_heads=4"))
    return measure_prefill(tree, Point("nano", name, tokens), kind, repeats=1)


@pytest.mark.parametrize("name", METHODS)
def test_a_prefill_tells_its_time_and_what_it_reads(name):
    found = measured(name, "video", 64)
    assert 0 < found.milliseconds < 60_000 and found.budget > 0 and math.isnan(found.peak_mib)


def test_the_budget_is_the_share_of_causal_pairs(monkeypatch):
    """Of a_shape by hand: row i reads its last 60 and the first 4 keys."""
    rows = range(192)
    read = sum(len({*range(min(4, i + 1)), *range(max(0, i - 59), i + 1)}) for i in rows)
    found = measured("a_shape")
    assert found.budget == pytest.approx(read / sum(i + 1 for i in rows))
    assert found.choose_ms < found.milliseconds and found.visited == 1
    monkeypatch.setattr(prefill_point, "ROWS", 20)  # every ninth row
    some = [len({*range(min(4, i + 1)), *range(max(0, i - 59), i + 1)}) for i in rows[::9]]
    assert measured("a_shape").budget == pytest.approx(sum(some) / sum(i + 1 for i in rows[::9]))
    assert measured("dense").budget == 1 and math.isnan(measured("dense").choose_ms)


@pytest.mark.parametrize("workers", ["fork"], indirect=True)
def test_a_row_for_each_method_and_kind_of_inputs(workers, tmp_path, capsys):
    config = load_config(None, [*ASKED, "tasks.needle.enabled=true"])
    asked = {"sizes": ["nano"], "lengths": [128], "methods": ["dense", "a_shape"], "inputs": ["random", "video"]}
    rows = run_prefill(config, **asked, repeats=1, out=tmp_path / "prefill.csv")
    assert [(r["inputs"], r["method"], r["video_tokens"]) for r in rows] == [
        (kind, name, 128) for kind in ("random", "video") for name in ("dense", "a_shape")
    ]
    with open(tmp_path / "prefill.csv") as file:
        written = list(csv.DictReader(file))
    assert [row["method"] for row in written] == [row["method"] for row in rows] and written[0]["driver"] == "none"
    assert capsys.readouterr().out.count("a_shape") == 2


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"inputs": ["film"]}, "'film' is unknown; known: random, video"),
        ({"sizes": ["huge"]}, "'huge' is no model size"),
        ({"lengths": [100]}, "100 is not a positive multiple of 64"),
        ({"methods": ["flash"]}, "attention.method"),
    ],
)
def test_what_cannot_be_measured_is_refused(asked, said):
    given = {"sizes": ["nano"], "lengths": [64], "methods": ["dense"], "inputs": ["random"]} | asked
    with pytest.raises(NsaLabError, match=said):
        run_prefill(load_config(None, [*ASKED, "tasks.needle.enabled=true"]), **given, repeats=1, out=None)
