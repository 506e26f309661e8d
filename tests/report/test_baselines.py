"""Published methods in a report: curves over budgets, the paper's Table 1 beside them, and prefill times."""

import csv
import math

import pytest

from nsa_lab.cli.app import main
from nsa_lab.comparison.rows import MEASURED, ORIGIN
from nsa_lab.comparison.spec import Comparison, Experiment
from nsa_lab.errors import NsaLabError
from nsa_lab.report import write_results
from nsa_lab.report.charts import budget_chart
from nsa_lab.report.curves import main_experiment
from nsa_lab.report.paper import beside_methods
from nsa_lab.report.prefill import prefill_chart, prefill_grids, prefill_said, read_prefills

MEANS = {
    "dense": (80.0, 0.95), "x_attention-50": (40.0, 0.94), "x_attention-25": (20.0, 0.7), "fastv-50": (40.0, 0.8),
    "fastv-25": (20.0, 0.5), "tri_shape-25": (20.0, 0.6), "mine-25": (20.0, 0.99), "video_nsa-25": (20.0, 0.97),
}  # fmt: skip


@pytest.fixture
def study(tmp_path):
    base = tmp_path / "base.yaml"
    experiments = (Experiment("base", base), Experiment("base-inference", base, weights="base", design="dense"))
    metrics = {"val/accuracy": "maximize"}
    return Comparison(
        tmp_path / "study.yaml", experiments, {name: {} for name in MEANS}, ("dense",), metrics, (0, 1, 2)
    )


@pytest.fixture
def rows():
    found = []
    for experiment, names in (("base", ["dense"]), ("base-inference", MEANS)):
        for name in names:
            for seed, shift in enumerate((-0.01, 0.0, 0.01)):
                row = dict.fromkeys(MEASURED, "") | dict.fromkeys(ORIGIN, "x") | {"steps": "5"}
                row |= {"experiment": experiment, "variant": name, "seed": str(seed), "config_hash": f"{name}{seed}"}
                keys, accuracy = MEANS[name]
                own = shift * (1 + 0.1 * (name != "dense"))
                row |= {"val/accuracy": repr(accuracy + own), "budget/keys_per_query_with_compressed": repr(keys)}
                found.append(row)
    return found


def test_a_curve_for_each_method_in_the_experiment_that_has_them(study, rows):
    assert main_experiment(study, rows) == "base-inference"
    svg = budget_chart(study, rows, "val/accuracy")
    assert (
        all(f">{name}<" in svg for name in ("dense", "x_attention", "fastv", "video_nsa"))
        and "x_attention-50" not in svg
    )


def test_what_agrees_with_the_papers_table_and_what_does_not(study, rows):
    beside = beside_methods(study, rows)
    lines = {line[0]: line for line in beside.grid.lines}
    assert list(lines) == ["dense", "x_attention", "fastv", "tri_shape", "mine", "video_nsa"]
    assert lines["fastv"][1:9] == ["57.3", "41.8", "46.5", "35.6", "21.6", "32.0", "39.1", "-8.2"]
    assert lines["fastv"][9] == "50: -15.0 ± 0.2; 25: -45.0 ± 0.2" and lines["mine"][1] == lines["dense"][9] == ""
    (said,) = beside.said
    # there: fastv -8.2, tri_shape -1.2, x_attention +1.3, video_nsa +3.1; here -45, -35, -25, +2
    assert said == (
        "At 25 % of dense attention: 6 of 6 pairs of methods stand in the paper's order of means; on the paper's side"
        " of dense: fastv, tri_shape, video_nsa; on the other side: x_attention (+1.3 there, -25.0 here)."
    )
    for row in rows:
        if row["variant"] == "video_nsa-25":
            row["val/accuracy"] = repr(0.9 + 0.1 * int(row["seed"]) * (-1) ** int(row["seed"]))
    assert "; not told from dense here (95% intervals of each alone): video_nsa." in beside_methods(study, rows).said[0]
    assert beside_methods(study, [r for r in rows if not r["variant"].startswith(("tri", "x_", "video"))]) is None


def prefills(place, **changed):
    times = {"dense": (1.0, 4.0, 16.0), "a_shape": (2.0, 3.0, 4.0), "minference": (4.0, 8.0, math.nan)}
    found = [
        {"what": "layer prefill", "size": "7b", "inputs": "video", "method": name, "video_tokens": 8192 * 2**n,
         "milliseconds": value, "choose_ms": value / 4, "peak_mib": 2000, "budget": 0.25, "visited": 0.5,
         "precision": "bf16-true", "device": "a GPU", "driver": "1", "torch": "2", "triton": "3", "commit": "c",
         "date": "today"} | changed
        for name, own in times.items() for n, value in enumerate(own) if not math.isnan(value)
    ]  # fmt: skip
    with open(place, "w", newline="") as stream:
        table = csv.DictWriter(stream, list(found[0]))
        table.writeheader()
        table.writerows(found)
    return place


def test_prefill_times_become_tables_sentences_and_a_picture(tmp_path, capsys):
    (found,) = read_prefills(prefills(tmp_path / "times.csv"))
    assert found.title == "a GPU, 7b, bf16-true, video inputs"
    grids = {grid.title: {line[0]: line[1:] for line in grid.lines} for grid in prefill_grids(found)}
    assert grids["milliseconds"]["minference"] == ["4", "8", ""]
    assert grids["times as fast as dense attention"] == {
        "a_shape": ["0.50", "1.33", "4.00"],
        "minference": ["0.25", "0.50", ""],
    }
    assert grids["keys read, of dense attention's"]["dense"] == ["25.0%"] * 3
    assert list(prefill_said(found)) == [
        "a_shape: faster than dense from 16,384 tokens on, 4.00 times its speed at 32,768, reading 25% of its keys",
        "minference: not faster than dense, 0.50 times its speed at 16,384, reading 25% of its keys",
        "minference: nothing measured at 32,768 tokens",
    ]
    svg = prefill_chart(found)
    assert all(f">{text}<" in svg for text in ("8K", "16K", "32K", "a_shape", "video tokens"))
    main_done = tmp_path / "page.html"
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path / "times.csv"), "--out", str(main_done)])
    assert ended.value.code == 0 and "a GPU, 7b, bf16-true, video inputs" in main_done.read_text()
    assert "faster than dense from 16,384" in write_results([tmp_path / "times.csv"], tmp_path / "r.md").read_text()


def test_prefills_are_found_by_name_and_other_tables_are_refused(tmp_path):
    prefills(tmp_path / "prefill-h100.csv")
    assert "a GPU, 7b" in write_results([tmp_path], tmp_path / "r.md").read_text()
    for name, changed in (
        ("other", {"what": "training step"}), ("broken", {"milliseconds": "fast"}), ("broken0", {"milliseconds": 0}),
        ("broken1", {"milliseconds": "nan"}), ("broken2", {"video_tokens": 10**26}), ("broken3", {"video_tokens": 0}),
    ):  # fmt: skip
        with pytest.raises(NsaLabError, match=rf"{name}\.csv (has no rows|cannot be read)"):
            read_prefills(prefills(tmp_path / f"{name}.csv", **changed))
    with pytest.raises(NsaLabError, match=r"none\.csv cannot be read"):
        read_prefills(tmp_path / "none.csv")
