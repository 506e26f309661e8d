"""Rows to tables and Markdown: pairs by seed, families of Holm, what is said and what is not."""

import csv

import pytest

from nsa_lab.comparison.markdown import to_markdown
from nsa_lab.comparison.report import report, write_tables
from nsa_lab.comparison.rows import KEY, MEASURED, ORIGIN, read_rows, write_rows
from nsa_lab.comparison.spec import load_comparison
from nsa_lab.comparison.statistics import holm, paired_test
from nsa_lab.comparison.tables import differences, means
from nsa_lab.errors import NsaLabError

FILE = '''"""Question: which is best?

Found: the good one.

Command: none
"""
EXPERIMENTS = ("base.yaml",)
VARIANTS = {"plain": {}, "good": {}, "same": {}}
REFERENCES = ("plain",)
METRICS = {"val/accuracy": "maximize", "val/loss": "minimize"}
SEEDS = range(9)
'''
PLAIN = [0.50, 0.52, 0.47, 0.55, 0.49, 0.51]
NOISE = [0.01, -0.012, 0.004, -0.003, 0.011, -0.008]


@pytest.fixture
def comparison(tmp_path):
    (tmp_path / "base.yaml").write_text("")
    (tmp_path / "study.py").write_text(FILE)
    return load_comparison(tmp_path / "study.py")


def row(variant, seed, accuracy, **changed):
    values = dict.fromkeys([*MEASURED, *ORIGIN], "x") | dict.fromkeys(MEASURED, "")
    values |= {"experiment": "base", "variant": variant, "seed": str(seed), "config_hash": f"{variant}{seed}"}
    return values | {"steps": "5", "val/accuracy": repr(accuracy), "val/loss": repr(1 - accuracy)} | changed


def rows_of(**shifts):
    return [
        row(name, seed, value + shift + noise * (name != "plain"))
        for name, shift in shifts.items()
        for seed, (value, noise) in enumerate(zip(PLAIN, NOISE, strict=True))
    ]


def test_differences_are_paired_by_seed_whatever_the_order(comparison):
    rows = rows_of(plain=0.0, good=0.1, same=0.0)
    found = {(d.variant, d.metric): d for d in differences(comparison, rows[::-1])}
    assert set(found) == {(v, m) for v in ("good", "same") for m in comparison.metrics}
    good = found["good", "val/accuracy"]
    expected = paired_test([value + 0.1 + noise for value, noise in zip(PLAIN, NOISE, strict=True)], PLAIN)
    assert good.test.t_test == pytest.approx(expected.t_test)
    assert good.test.difference.mean == pytest.approx(0.1 + sum(NOISE) / 6)
    family = [found[name, "val/accuracy"] for name in ("good", "same")]
    assert [d.t_test_holm for d in family] == holm([d.test.t_test for d in family])
    assert [d.sign_flip_holm for d in family] == holm([d.test.sign_flip for d in family])


def test_only_seeds_that_both_have_are_compared_and_one_is_not_enough(comparison):
    rows = rows_of(plain=0.0, good=0.1)
    some = [r for r in rows if r["variant"] == "plain" or int(r["seed"]) in (1, 4)]
    (accuracy, _) = differences(comparison, some)
    assert accuracy.test.difference.count == 2
    assert differences(comparison, [r for r in some if r["variant"] == "plain" or r["seed"] == "1"]) == []


def test_means_are_over_the_seeds_that_were_measured(comparison):
    rows = [row("plain", 0, 0.2), row("plain", 1, 0.4), row("good", 0, 0.9)]
    found = {m.variant: m.value for m in means(comparison, rows, ["val/accuracy"])}
    assert (found["plain"].mean, found["plain"].count, found["good"].count) == (pytest.approx(0.3), 2, 1)
    assert means(comparison, rows, ["throughput/seconds_per_step"]) == []


def test_the_markdown_says_what_differs_and_what_does_not(comparison):
    text = to_markdown(comparison, rows_of(plain=0.0, good=0.1, same=0.0))
    assert "Question: which is best?\n\nFound: the good one.\n\n" in text and "Command" not in text
    assert "better than `plain`: good." in text and "same" not in text.partition("adjusted p <")[2].partition("\n")[0]
    assert "6 seeds, 5 steps" in text and "0.03125 for 6" in text
    assert "| good | 60.7 ± " in text and "**+10.0 ± " in text
    no_difference = to_markdown(comparison, rows_of(plain=0.0, same=0.0))
    assert "no design differs from `plain`" in no_difference and "**" not in no_difference
    worse = to_markdown(comparison, rows_of(plain=0.0, good=-0.1))
    assert "worse than `plain`: good." in worse


def test_every_row_s_origin_is_named(comparison):
    rows = [*rows_of(plain=0.0), row("good", 0, 0.5, commit="abc", device="a chip")]
    text = to_markdown(comparison, rows)
    assert "- commit: abc, x" in text and "- device: a chip, x" in text
    assert all(r["config_hash"] in text for r in rows)


def test_rows_come_back_as_written_and_results_from_them(comparison, tmp_path):
    rows = rows_of(plain=0.0, good=0.1)
    write_rows(tmp_path / "runs.csv", rows)
    again = read_rows(tmp_path / "runs.csv")
    assert again == {tuple(r[name] for name in KEY): r for r in rows}
    results = report(comparison.path, tmp_path / "runs.csv", tmp_path / "RESULTS.md").read_text()
    assert results.startswith("# Results") and to_markdown(comparison, list(again.values())) in results


def test_the_csv_of_tests_holds_every_pair(comparison, tmp_path):
    write_tables(comparison, rows_of(plain=0.0, good=0.1, same=0.0), tmp_path)
    with open(tmp_path / "table.csv", newline="") as stream:
        found = {(r["metric"], r["design"]): r for r in csv.DictReader(stream)}
    assert len(found) == 6
    assert found["val/loss", "good"]["reference"] == "plain" and found["val/loss", "plain"]["reference"] == ""
    assert float(found["val/loss", "good"]["difference"]) == pytest.approx(-0.1 - sum(NOISE) / 6)


def test_a_report_without_rows_is_refused(comparison, tmp_path):
    with pytest.raises(NsaLabError, match=r"holds no rows; run `nsa-lab compare"):
        report(comparison.path, tmp_path / "nothing.csv", tmp_path / "RESULTS.md")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(NsaLabError, match="holds no rows of a comparison"):
        report(comparison.path, tmp_path / "other.csv", tmp_path / "RESULTS.md")
