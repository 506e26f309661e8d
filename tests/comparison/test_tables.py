"""Rows to tables and Markdown: pairs by seed, families of Holm, what is said and what is not."""

import csv
import io
from dataclasses import replace

import pytest
from rich.console import Console

from nsa_lab.comparison import compare
from nsa_lab.comparison.grid import Grid
from nsa_lab.comparison.markdown import to_latex, to_markdown
from nsa_lab.comparison.plan import trainings
from nsa_lab.comparison.report import print_tables, report, write_tables
from nsa_lab.comparison.rows import KEY, MEASURED, ORIGIN, key_of, read_rows, write_rows
from nsa_lab.comparison.sections import PAST, footnotes, sections
from nsa_lab.comparison.spec import Experiment, load_comparison
from nsa_lab.comparison.statistics import holm, paired_test
from nsa_lab.comparison.tables import differences, mean
from nsa_lab.errors import NsaLabError

FILE = '''"""Question: which is best?

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


def test_only_seeds_that_both_have_are_compared_and_two_prove_nothing(comparison):
    rows = rows_of(plain=0.0, good=0.1)
    some = [r for r in rows if r["variant"] == "plain" or int(r["seed"]) in (1, 5)]
    (accuracy, _) = differences(comparison, some)
    assert accuracy.test.difference.count == 2 and not accuracy.significant
    text = to_markdown(comparison, some, "study")
    assert "| good | +9.0 % (n=2) |" in text and "| good | 60.5 % (n=2) | 0.3950 (n=2) | 2 |" in text
    assert "- val/accuracy: too few seeds for a test against `plain`." in text
    assert differences(comparison, [r for r in some if r["variant"] == "plain" or r["seed"] == "9"]) == []


def test_means_are_over_the_seeds_that_were_measured(comparison):
    rows = [row("plain", 0, 0.2), row("plain", 1, 0.4), row("good", 0, 0.9)]
    plain, good = (mean(rows, ["base"], name, "val/accuracy") for name in ("plain", "good"))
    assert (plain.mean, plain.count, good.count) == (pytest.approx(0.3), 2, 1)
    assert mean(rows, ["base"], "plain", "throughput/seconds_per_step") is None


@pytest.fixture
def joint(comparison):
    """Rows of two tasks, the second without the last of `good` and without `plain`; a name that layouts would spoil."""
    budgets = {"budget/keys_per_query": "1234.5", "budget/ratio_to_dense": "0.125"}
    rows = [r | budgets for r in rows_of(plain=0.0, good=0.1, **{"a_much_longer_name_of_a_design_at_100%": 0.0})]
    other = {"experiment": "other", "val/accuracy": "0.9"}
    return rows + [r | other for r in rows if (r["variant"], r["seed"]) < ("good", "4")]


def test_designs_by_tasks_have_an_average_over_the_seeds_that_all_tasks_have(comparison, joint):
    text = to_markdown(comparison, joint, "study").partition("### all tasks")[2].partition("### base")[0]
    assert "| design | base | other | average | keys per query | of dense | seeds |" in text
    accuracy = sum(value + 0.1 + noise for value, noise in zip(PLAIN[:4], NOISE, strict=False)) / 4
    (line,) = (line for line in text.partition("val/loss")[0].splitlines() if line.startswith("| good"))
    assert line.startswith("| good | 60.7 ± ") and f"| 90.0 ± 0.0 % | {50 * (accuracy + 0.9):.1f} ± " in line
    assert line.endswith("| 1,234 | 12.5 % | 4 |")
    assert "| plain | 50.7 ± 2.9 % |  |  |" in text, "no average of some tasks alone"


def test_the_terminal_shows_whole_names_and_every_reference(comparison, joint, tmp_path):
    comparison.path.write_text(FILE.replace('("plain",)', '("plain", "good")'))
    console = Console(record=True, width=80, file=io.StringIO())
    print_tables(load_comparison(comparison.path), joint, console)
    text = console.export_text()
    assert "a_much_longer_name_of_a_design_at_100%" in text and "base: val/loss: difference from" in text
    assert "base: val/accuracy, adjusted p < 0.05 (t-test): better than `plain`: good." in text
    assert "worse than `good`: plain" in text


def test_latex_is_escaped(comparison, joint):
    text = to_latex(comparison, joint, "study")
    assert r"a\_much\_longer\_name\_of\_a\_design\_at\_100\%" in text and r"\caption{base: val/loss: difference" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 6
    grid = Grid("10 % & more", ["design", "loss ↓"], [["a-1", "**-0.10 ± 0.02** (p 1e-05)"]])
    assert grid.latex().splitlines()[2:9] == [
        r"\caption{10 \% \& more}",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"design & loss $\downarrow$ \\",
        r"\midrule",
        r"a-1 & \textbf{$-$0.10 $\pm$ 0.02} (p 1e-05) \\",
        r"\bottomrule",
    ]


def test_the_markdown_says_what_differs_and_what_does_not(comparison):
    text = to_markdown(comparison, rows_of(plain=0.0, good=0.1, same=0.0), "study")
    assert "better than `plain`: good." in text and "same" not in text.partition("adjusted p <")[2].partition("\n")[0]
    assert "6 seeds, 5 steps" in text and "0.03125 for 6" in text
    assert "| good | 60.7 ± " in text and "**+10.0 ± " in text
    no_difference = to_markdown(comparison, rows_of(plain=0.0, same=0.0), "study")
    assert "no design differs from `plain`" in no_difference and "**" not in no_difference
    worse = to_markdown(comparison, rows_of(plain=0.0, good=-0.1), "study")
    assert "worse than `plain`: good." in worse


def test_the_markdown_says_that_many_seeds_have_their_sign_flips_sampled(comparison):
    few, many = (
        [row(name, seed, 0.5 + seed / 99) for name in ("plain", "good") for seed in range(n)] for n in (14, 15)
    )
    assert "then the exact sign-flip test, both" in to_markdown(comparison, few, "study")
    said = to_markdown(comparison, many, "study")
    assert "then the sign-flip test (exact up to 14 seeds, beyond from 16384 random patterns), both" in said
    assert "cannot go below 6.103e-05 for 15" in said


def test_every_row_s_origin_is_named(comparison):
    rows = [*rows_of(plain=0.0), row("good", 0, 0.5, commit="abc", device="a chip")]
    text = to_markdown(comparison, rows, "study")
    assert "- commit: abc, x" in text and "- device: a chip, x" in text
    assert all(r["config_hash"] in text for r in rows)


def test_rows_come_back_as_written_and_results_from_them(comparison, tmp_path):
    rows = rows_of(plain=0.0, good=0.1)
    write_rows(tmp_path / "runs.csv", rows)
    again = read_rows(tmp_path / "runs.csv")
    assert again == {tuple(r[name] for name in KEY): r for r in rows}
    results = report(comparison.path, [tmp_path / "runs.csv"])
    assert results == tmp_path / "RESULTS.md" and results.read_text().startswith("# Results")
    assert to_markdown(comparison, list(again.values()), f"`{tmp_path / 'runs.csv'}`") in results.read_text()
    latex = report(comparison.path, [tmp_path / "runs.csv"], tmp_path / "results.tex")
    assert latex.read_text() == to_latex(comparison, rows, str(tmp_path / "runs.csv"))


def test_a_report_says_what_was_found_in_its_own_rows_alone(comparison, tmp_path):
    one, two = (tmp_path / name / "runs.csv" for name in ("one", "two"))
    for file in (one, two):
        write_rows(file, rows_of(plain=0.0, good=0.1))
    one.with_name("FINDINGS.md").write_text("Found: the good one.\n")
    text = report(comparison.path, [two, one], tmp_path / "new" / "here.md").read_text()
    assert "Question: which is best?\n\n## " in text and "Command" not in text
    first, second = text.split("\n## ")[1:]
    assert first.startswith(f"`{two}`\n\n6 seeds") and second.startswith(f"`{one}`\n\nFound: the good one.\n\n6 seeds")
    one.with_name("FINDINGS.md").write_bytes(b"\xff")
    with pytest.raises(NsaLabError, match=r"FINDINGS\.md cannot be read .* write it as text"):
        report(comparison.path, [one])


def test_a_report_mixes_no_trainings(comparison, tmp_path):
    file = tmp_path / "runs.csv"
    write_rows(file, [*rows_of(plain=0.0), row("plain", 0, 0.9, config_hash="other")])
    with pytest.raises(NsaLabError, match="two configs trained as base, plain, seed 0: other and plain0; remove"):
        report(comparison.path, [file])
    write_rows(file, [row("plain", 0, 0.9), row("good", 0, 0.9, steps="6")])
    with pytest.raises(NsaLabError, match="base, plain, seed 0 took 5 steps, others 6"):
        report(comparison.path, [file])


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [("seed", "one", "runs.csv:2: seed is 'one'"), ("val/loss", "low", "runs.csv:2: val/loss is 'low', not a number")],
)
def test_a_broken_row_is_named(comparison, tmp_path, name, changed, said):
    write_rows(tmp_path / "runs.csv", [row("plain", 0, 0.9)])
    text = (tmp_path / "runs.csv").read_text().splitlines()
    cells = text[1].split(",")
    cells[text[0].split(",").index(name)] = changed
    (tmp_path / "runs.csv").write_text("\n".join([text[0], ",".join(cells)]))
    with pytest.raises(NsaLabError, match=said):
        report(comparison.path, [tmp_path / "runs.csv"])


def test_places_that_cannot_be_read_or_written_are_named(comparison, tmp_path):
    with pytest.raises(NsaLabError, match="cannot be read as a CSV"):
        report(comparison.path, [tmp_path])
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(NsaLabError, match=r"picture\.csv cannot be read as a CSV"):
        report(comparison.path, [tmp_path / "picture.csv"])
    write_rows(tmp_path / "runs.csv", rows_of(plain=0.0))
    with pytest.raises(NsaLabError, match=r"cannot write .*name another file with --out"):
        report(comparison.path, [tmp_path / "runs.csv"], tmp_path / "runs.csv" / "RESULTS.md")
    with pytest.raises(NsaLabError, match=r"file end with \.md or \.tex"):
        report(comparison.path, [tmp_path / "runs.csv"], tmp_path / "RESULTS.html")


def test_the_csv_of_tests_holds_every_pair(comparison, tmp_path):
    write_tables(comparison, rows_of(plain=0.0, good=0.1, same=0.0), tmp_path)
    with open(tmp_path / "table.csv", newline="") as stream:
        found = {(r["metric"], r["design"]): r for r in csv.DictReader(stream)}
    assert len(found) == 6
    assert found["val/loss", "good"]["reference"] == "plain" and found["val/loss", "plain"]["reference"] == ""
    assert float(found["val/loss", "good"]["difference"]) == pytest.approx(-0.1 - sum(NOISE) / 6)


def test_a_report_without_rows_is_refused(comparison, tmp_path):
    for what in ("does not exist", "holds no rows"):
        with pytest.raises(NsaLabError, match=rf"nothing\.csv {what}; run `nsa-lab compare"):
            report(comparison.path, [tmp_path / "nothing.csv"])
        (tmp_path / "nothing.csv").write_text("")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(NsaLabError, match="holds no rows of a comparison"):
        report(comparison.path, [tmp_path / "other.csv"])


def test_what_figures_leave_open_is_said_below_them(comparison, tmp_path, capsys):
    few = [row("plain", seed, 0.5) for seed in range(2)] + [row("good", seed, v) for seed, v in enumerate((1, 1, 0.8))]
    assert footnotes(comparison, few) == ["(n=2): fewer than 3 seeds have a mean and no interval.", PAST]
    assert footnotes(comparison, rows_of(plain=0.0)) == []
    print_tables(comparison, few)
    assert "(n=2): fewer than 3 seeds" in capsys.readouterr().out
    assert PAST in to_markdown(comparison, few, "")
    assert to_markdown(comparison, few[:1], "").startswith("## \n\n1 seed, 5 steps")


def test_designs_validated_with_weights_say_whose_and_none_has_an_empty_row(comparison):
    theirs = Experiment("base-inference", comparison.path, weights="base", design="plain")
    comparison = replace(
        comparison,
        experiments=(*comparison.experiments, theirs),
        branches={"plain": ("window",), "good": ("selection",)},
    )
    rows = [row("plain", 0, 0.5), row("good", 0, 0.5, experiment="base-inference")]
    _, trained, validated = sections(comparison, rows)
    assert [line[0] for line in trained.grids[0].lines] == ["plain"] and trained.note == ""
    assert [line[0] for line in validated.grids[0].lines] == ["good"]
    assert validated.note == "Nothing is trained here: validated with the weights of plain as trained in base."
    assert f"### base-inference\n\n{validated.note}" in to_markdown(comparison, rows, "")


def test_tables_are_written_though_whoever_reads_them_is_gone(comparison, tmp_path, monkeypatch):
    def gone(*_):
        raise BrokenPipeError

    monkeypatch.setitem(compare.__globals__, "print_tables", gone)
    wanted = trainings(comparison, ["plain"], [0], [f"output.dir={tmp_path}", "tasks.needle.enabled=true"])
    write_rows(tmp_path / "out" / "runs.csv", [row("plain", 0, 0.5, config_hash=key_of(wanted[0])[3])])
    with pytest.raises(BrokenPipeError):
        compare(comparison, variants=["plain"], seeds=1, overrides=["tasks.needle.enabled=true"], out=tmp_path / "out")
    assert {"table.md", "table.tex", "table.csv"} < {file.name for file in (tmp_path / "out").iterdir()}
