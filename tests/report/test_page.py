"""The report: everything found in a folder, its numbers those of the rows, in one file that needs no other."""

import html
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from PIL import Image

from nsa_lab.cli.app import main
from nsa_lab.comparison.rows import MEASURED, ORIGIN, write_rows
from nsa_lab.comparison.spec import EXAMPLE_FILE, Comparison, Experiment
from nsa_lab.comparison.stored import STORED, load_stored, store
from nsa_lab.errors import NsaLabError
from nsa_lab.files import write_json
from nsa_lab.report import write_page, write_results
from nsa_lab.report.charts import budget_chart, means_chart
from nsa_lab.tracking.store import ARTIFACTS

DESIGNS = {"compression+window": ("compression", "window"), "window": ("window",), "$a_{$ <b> & c": ()}


@pytest.fixture
def comparison(tmp_path):
    return Comparison(
        path=tmp_path / "study.yaml",
        experiments=(Experiment("base", tmp_path / "base.yaml"), Experiment("base-2", tmp_path / "base.yaml")),
        variants={name: {"attention.text_window": 3} for name in DESIGNS},
        references=("window",),
        metrics={"val/accuracy/needle": "maximize", "val/accuracy": "maximize", "val/loss": "minimize"},
        seeds=(0, 1, 2),
        preset="quick",
        question="Question: which\nis best?\nCost: none",
        branches=DESIGNS,
        command="nsa-lab ablate study.yaml --preset quick training.steps=5",
    )


def rows_of():
    for experiment in ("base", "base-2"):
        for design, middle in zip(DESIGNS, (0.8, 0.4, 0.6), strict=True):
            for seed, shift in enumerate((-0.1, 0.0, 0.1)):
                row = dict.fromkeys(MEASURED, "") | dict.fromkeys(ORIGIN, "x")
                row |= {
                    "experiment": experiment,
                    "variant": design,
                    "seed": str(seed),
                    "config_hash": f"{design}{seed}",
                }
                row |= {"val/accuracy": repr(middle + shift), "val/accuracy/needle": repr(middle), "steps": "5"}
                yield row | {"val/loss": "0.5", "budget/keys_per_query_with_compressed": "7.5"}


@pytest.fixture
def folder(comparison, tmp_path):
    place = tmp_path / "runs" / "comparisons" / "study"
    place.mkdir(parents=True)
    store(comparison, place)
    write_rows(place / "runs.csv", rows_of())
    return place


class Elements(HTMLParser):
    """Checks that elements are closed in order, and keeps what others are fetched."""

    def __init__(self):
        super().__init__()
        self.open, self.fetched = [], []

    def handle_starttag(self, tag, attributes):
        self.fetched += [v for k, v in attributes if k in ("src", "href") and v and not v.startswith(("#", "data:"))]
        if tag not in ("meta", "img", "br", "path", "use", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("path", "use", "rect"):
            assert self.open.pop() == tag


def test_a_page_holds_numbers_pictures_and_origin_and_fetches_nothing(folder, tmp_path):
    study = tmp_path / "runs" / "studies" / "s"
    study.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(study / "pareto.png")
    analysis = tmp_path / "runs" / "run-1" / "analysis"
    analysis.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(analysis / "gate_means.png")
    shutil.copytree(study, tmp_path / "runs" / ARTIFACTS / "0123" / "artifacts")  # as MLflow keeps it
    text = write_page([tmp_path / "runs"], tmp_path / "page.html").read_text()
    elements = Elements()
    elements.feed(text)
    assert not elements.open and not elements.fetched
    assert "80.0 ± 24.8 %" in text and "<dt>Question</dt><dd>which is best?</dd>" in text
    assert "nsa-lab ablate" in text and "--preset quick training.steps=5" in text
    assert "$a_{$ &lt;b&gt; &amp; c" in text and "<b>" not in text
    assert text.count("data:image/png;base64,") == 2 and "gate means" in text
    assert text.count("<svg") == 3, "two accuracies and the budget"
    assert "<td>compression+window</td><td>49.3</td>" in text, "the paper's numbers of the same branches"
    again = write_page([tmp_path / "runs"], tmp_path / "again.html").read_text()
    assert again == text


def test_charts_draw_each_design_at_its_mean(comparison):
    rows = list(rows_of())
    svg = means_chart(comparison, rows, "val/accuracy")
    assert all(name in svg for name in ("compression+window", "base-2", "per cent")) and "width=" not in svg[:200]
    assert "pooled ones" in budget_chart(comparison, rows, "val/accuracy")
    for row in rows:
        row["budget/keys_per_query_with_compressed"] = ""
    assert budget_chart(comparison, rows, "val/accuracy") is None


def test_what_is_stored_comes_back(comparison, folder):
    assert load_stored(folder) == comparison


def test_results_as_markdown_and_faults_in_one_line(folder, tmp_path, capsys):
    text = write_results([folder], tmp_path / "RESULTS.md").read_text()
    assert "## study-quick" in text and "| window |  | ✓ | 40.0 ± 0.0 % |" in text
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments, said in (
        ([empty], "nothing to report on"),
        ([tmp_path / "none"], "none does not exist; name one"),
        ([folder, "--out", tmp_path / "x.pdf"], "ends with .html or .md"),
        ([tmp_path / "study.yaml"], "name its runs.csv too"),
        ([EXAMPLE_FILE, folder / "runs.csv", "--out", tmp_path / "x.html"], "file end with .md or .tex"),
        ([EXAMPLE_FILE, folder / "none.csv"], "none.csv does not exist; run `nsa-lab compare "),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["report", *map(str, arguments)])
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
    (folder / STORED).write_text(re.sub(r'"metrics"', '"metricz"', (folder / STORED).read_text()))
    with pytest.raises(NsaLabError, match=r"comparison\.json is damaged \(it lacks"):
        write_page([folder], tmp_path / "page.html")


@pytest.fixture
def plain(tmp_path):
    """Writes a run as `nsa-lab train` leaves it; gives its folder."""

    def write(name="smoke-1", **tags):
        home = tmp_path / "runs" / name
        home.mkdir(parents=True)
        metrics = {"val/accuracy": 0.25, "val/loss": 0.5, "val/accuracy/needle": 0.25, "budget/keys_per_query": 12.0}
        (home / "config.yaml").write_text("name: smoke\n")
        write_json(home / "summary.json", {"metrics": metrics, "stopped": False, "config_hash": "abc"})
        write_json(home / "tags.json", {"method": "nsa", "branches": "compression+window", **tags})
        write_json(home / "origin.json", {"commit": "0123456789abcdef"})
        (home / "metrics.jsonl").write_text('{"step": 20, "metrics": {"val/loss": 0.5}}\n')
        return home

    return write


def test_runs_that_were_trained_alone_have_a_table_and_those_of_a_comparison_do_not(plain, tmp_path):
    plain()
    plain("pruned", reducer="fastv")
    plain("theirs", kind="comparison")
    text = write_page([tmp_path / "runs"], tmp_path / "page.html").read_text()
    line = "smoke-1 | nsa: compression+window | finished | 20 | 25.0 % | 0.5000 | 12 | 0123456789ab | abc"
    assert "".join(f"<td>{cell}</td>" for cell in line.split(" | ")) in text and "theirs" not in text
    assert "<td>pruned</td><td>nsa: compression+window with fastv</td>" in text
    elements = Elements()
    elements.feed(text)
    assert not elements.open
    assert f"| {line} |" in write_results([tmp_path / "runs"], tmp_path / "RESULTS.md").read_text()


def spoilt_rows(change):
    def spoil(folder):
        write_rows(folder / "runs.csv", rows_of())
        lines = (folder / "runs.csv").read_text().splitlines()
        (folder / "runs.csv").write_text("\n".join(change(lines)))

    return spoil


def spoilt_tree(**changed):
    def spoil(folder):
        write_json(folder / STORED, json.loads((folder / STORED).read_text()) | changed)

    return spoil


def mixed(folder):
    rows = list(rows_of())
    write_rows(folder / "runs.csv", [*rows, rows[0] | {"config_hash": "other"}])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (mixed, r"runs\.csv: two configs trained as base, compression\+window, seed 0: .* and other; remove the rows"),
        (spoilt_rows(lambda lines: [*lines, lines[3]]), r"runs\.csv:20 is the training of line 4 again; remove one"),
        (spoilt_rows(lambda lines: [one.replace(",0.5,", ",nan,") for one in lines]), r"runs\.csv:2: .* is 'nan', not"),
        (spoilt_rows(lambda lines: [one.split(",", 1)[1] for one in lines]), r"runs\.csv .*it lacks experiment"),
        (spoilt_rows(lambda lines: [*lines, "1,2"]), r"runs\.csv:20 has more or fewer cells"),
        (spoilt_tree(variants={"window": 3}), r"comparison\.json is damaged \(variants is"),
        (spoilt_tree(seeds="012"), r"comparison\.json is damaged \(seeds is '012'"),
        (spoilt_tree(question=None), r"comparison\.json is damaged \(question is None"),
        (spoilt_tree(experiments=[]), r"comparison\.json is damaged \(ValueError: its experiments"),
        (spoilt_tree(experiments=[{"name": "a"}]), r"comparison\.json is damaged \(KeyError"),
        (spoilt_tree(branches={"window": "window"}), r"comparison\.json is damaged \(branches is"),
    ],
)
def test_what_is_damaged_is_a_line_on_the_page_and_spares_the_rest(folder, plain, tmp_path, capsys, spoil, said):
    plain()
    spoil(folder)
    for out in ("page.html", "RESULTS.md"):
        with pytest.raises(SystemExit) as ended:
            main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / out)])
        fault, last = capsys.readouterr().err.splitlines()
        assert (
            ended.value.code == 2 and re.search(said, fault) and last.endswith("is written without what is named above")
        )
        text = (tmp_path / out).read_text()
        assert re.search(said, html.unescape(text)) and "smoke-1" in text


def test_a_folder_in_place_of_a_file_is_a_line_too(folder, plain, tmp_path):
    plain()
    (folder / STORED).unlink()
    (folder / STORED).mkdir()
    with pytest.raises(NsaLabError, match=r"comparison\.json cannot be read \(Is a directory\)"):
        write_page([tmp_path / "runs"], tmp_path / "page.html")
    assert "smoke-1" in (tmp_path / "page.html").read_text()


def test_a_damaged_run_is_a_line_too(folder, plain, tmp_path):
    (plain() / "metrics.jsonl").write_text("damaged\n")
    with pytest.raises(NsaLabError, match=r"metrics\.jsonl:1 is damaged .*train it again with"):
        write_page([tmp_path / "runs"], tmp_path / "page.html")
    assert "80.0 ± 24.8 %" in (tmp_path / "page.html").read_text()


def test_a_comparison_without_rows_yet_is_on_the_page(folder, tmp_path):
    write_rows(folder / "runs.csv", [])
    assert "there are no rows yet" in write_page([folder], tmp_path / "page.html").read_text()
