"""Benchmarks where lmms-eval is not: their settings, letters, and what is said of a failure."""

import json

import pytest

from nsa_lab.benchmark import read_benchmarks, run
from nsa_lab.benchmark.failure import why
from nsa_lab.benchmark.letters import bare_letter
from nsa_lab.benchmark.local import local_task
from nsa_lab.benchmark.run import KEYS, Score
from nsa_lab.benchmark.settings import PATCH_PIXELS, model_settings
from nsa_lab.benchmark.table import scores_table
from nsa_lab.cli import app as cli
from nsa_lab.errors import ConfigError, NsaLabError
from nsa_lab.report import write_page, write_results

LINES = "Which one?\nA. a red ball\nB. a cat\nC. the sea\nAnswer with the letter."
PRINTED = "<options> \n{'A': 'a red ball', 'B': \"a cat's tail\", 'C': 'the sea'} \n</options>"


@pytest.mark.parametrize(
    ("question", "answer", "letter"),
    [
        (LINES, "B", "B"),
        (LINES, "(B)", "B"),
        (LINES, "Answer: C", "C"),
        (LINES, "the sea", "C"),
        (LINES, "A or B", "A or B"),
        (LINES, "E", "E"),
        (PRINTED, "Answer: C", "C"),
        (PRINTED, "a cat's tail", "B"),
        ("How many chairs?", "B. 4", "B. 4"),
        ("<options>\n{'A': oops}\n", "Answer: C", "Answer: C"),
    ],
)
def test_an_answer_that_names_an_option_becomes_its_letter(question, answer, letter):
    assert bare_letter(question, answer) == letter


def test_settings_are_the_paper_s():
    """Table 5: tokens of a frame, frames, new tokens; Table 1: scores."""
    found = {one.task: one.settings for one in read_benchmarks(["all"])}
    told = {task: (s.tokens_per_frame, s.max_frames, s.max_new_tokens, s.paper.videonsa) for task, s in found.items()}
    assert told == {
        "longvideobench_val_v": (512, 256, 32, 60.0),
        "mlvu_test": (128, 512, 16, 51.8),
        "mlvu_dev": (128, 512, 16, None),
        "timescope": (64, 2048, 16, 83.7),
        "longtimescope": (128, 512, 16, 44.4),
        "tomato": (256, 256, 1024, 26.5),
        "vsibench": (256, 128, 16, 36.1),
    }
    one = found["longvideobench_val_v"]
    seen = model_settings(one.fps, one.max_frames, one.pixels_per_frame)
    assert seen["data.max_pixels"] == 512 * PATCH_PIXELS and seen["data.max_tokens"] > 512 * 256
    assert model_settings(None, 8, None) == {"data.max_frames": 8}


def test_a_benchmark_of_one_s_own_is_a_file_and_its_faults_are_named_together(tmp_path):
    own = "dataset: a/b\nmetric: m\nunit: share\ntokens_per_frame: 64\nmax_frames: 8\nfps: 2\nmax_new_tokens: 4\n"
    (tmp_path / "mine.yaml").write_text(own)
    (one,) = read_benchmarks(["mine"], tmp_path)
    assert one.settings.bare_letters and one.settings.paper.videonsa is None and one.settings.fps == 2.0
    (tmp_path / "mine.yaml").write_text(own.replace("metric", "metrik").replace("share", "parts"))
    with pytest.raises(ConfigError) as found:
        read_benchmarks(["mine"], tmp_path)
    assert [problem.path.rpartition("mine.yaml")[2] for problem in found.value.problems] == [".metrik", ".unit", ""]
    assert "metric is missing" in str(found.value) and "did you mean 'metric'" in str(found.value)


def test_unknown_benchmarks_and_folders_are_named(tmp_path):
    with pytest.raises(NsaLabError, match=r"mlvu_tst is no benchmark of .*did you mean 'mlvu_test'.*known: .*vsibench"):
        read_benchmarks(["mlvu_tst"])
    with pytest.raises(NsaLabError, match=r"nowhere does not exist; run this in a clone"):
        read_benchmarks(["mlvu_test"], tmp_path / "nowhere")


def test_where_lmms_eval_is_not_installed_the_remedy_is_said(monkeypatch, capsys):
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        cli.main(["benchmark", "runs/x", "--tasks", "mlvu_test"])
    assert ended.value.code == 2
    assert "`make eval` sets up .venv-eval" in capsys.readouterr().err


def test_what_lmms_eval_could_not_take_is_refused_first(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "check_installed", lambda: None)
    (one,) = read_benchmarks(["tomato"])
    with pytest.raises(NsaLabError, match=r"data\.fps=1: how videos are seen is the benchmark's"):
        run.benchmark("m", one, tmp_path, overrides=["data.fps=1"])
    with pytest.raises(NsaLabError, match=r"runs/a,b: lmms-eval takes no commas"):
        run.benchmark("runs/a,b", one, tmp_path)
    with pytest.raises(NsaLabError, match=r"--rows .*none is no folder"):
        run.benchmark("m", one, tmp_path, rows=tmp_path / "none")
    assert local_task("tomato", tmp_path, tmp_path) is None


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("Traceback\n[rank1]: nsa_lab.errors.NsaLabError: no run\nChildFailedError: x\n", "tomato: no run"),
        ("x\nvideo path:/h/a.mp4 does not exist, please check\n", r"video /h/a\.mp4 is not there; unpack .*TOMATO"),
        (
            "tenacity.RetryError: finished raised ConnectionError>]\n",
            r"needs the data set lmms-eval/TOMATO, .*hf download",
        ),
        ("a\nValueError: bad thing\ntorch.ChildFailedError: y\n", r"failed \(ValueError: bad thing\); all .*log"),
        ("Killed\n", r"failed \(Killed\)"),
        ("", r"failed \(it said nothing\)"),
    ],
)
def test_a_failure_is_one_line_that_names_the_thing(tmp_path, log, said):
    (one,) = read_benchmarks(["tomato"])
    (tmp_path / "log").write_text(log)
    with pytest.raises(NsaLabError, match=said):
        raise NsaLabError(why(tmp_path / "log", one, "/h"))


def test_scores_stand_beside_the_paper_s_in_the_report(tmp_path):
    folder = tmp_path / "run/benchmark/tomato"
    folder.mkdir(parents=True)
    paper = {"videonsa": 26.5, "one_design": 26.2, "dense": None}
    given = {"task": "tomato", "model": "run", "score": 12.34, "questions": 9, "unanswered": 2, "paper": paper}
    (folder / "benchmark.json").write_text(json.dumps(given))
    assert set(given) == set(KEYS)
    assert list(scores_table([Score.read(folder)]).lines) == [
        ["tomato", "run", "9", "2", "**12.3**", "26.5", "26.2", ""]
    ]
    assert "<td><strong>12.3</strong></td>" in write_page([tmp_path], tmp_path / "x.html").read_text()
    assert (
        "| tomato | run | 9 | 2 | **12.3** | 26.5 | 26.2 |" in write_results([tmp_path], tmp_path / "x.md").read_text()
    )
    (folder / "benchmark.json").write_text("{}")
    with pytest.raises(NsaLabError, match=r"benchmark\.json"):
        write_page([tmp_path], tmp_path / "x.html")
