"""The benchmarks in small through lmms-eval as it is published, scored once more by hand from what it logged."""

import json
import shutil
from statistics import mean

import pytest

from nsa_lab.cli import app as cli
from nsa_lab.config import load_config
from nsa_lab.errors import NsaLabError
from nsa_lab.evaluation.predictions import LINES
from nsa_lab.report import write_page
from nsa_lab.tracking import Tracker

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed here; `make test-eval` runs this in .venv-eval")
from nsa_benchmarks import (
    CHOICES,
    DIRECTIONS,
    MLVU_DEV_KINDS,
    MLVU_KINDS,
    NUMBERS,
    ROWS,
    answer_of,
    write_mini,
    write_model,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
OF_EXPORT = ("longtimescope", "mlvu_dev")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tracked run, its export, and both asked all benchmarks."""
    folder = tmp_path_factory.mktemp("benchmark")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(folder / "hf"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        write_mini(folder / "hf", folder / "rows")
        write_model(folder / "run", folder / "clips", folder / "hf")
        Tracker.open(load_config(folder / "run/config.yaml"), folder / "run").finish()
        assert ran("export", folder / "run", folder / "exported") == 0
        others = ",".join(task for task in ROWS if task not in OF_EXPORT)
        asked = ("--rows", folder / "rows", "--batch", 3)
        assert ran("benchmark", folder / "run", "--tasks", others, *asked) == 0
        assert ran("benchmark", folder / "exported", "--tasks", ",".join(OF_EXPORT), *asked) == 0
        yield folder


def ran(*arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(list(map(str, arguments)))
    return ended.value.code or 0


def folder_of(place, task):
    return place / ("exported" if task in OF_EXPORT else "run") / "benchmark" / task


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def logged(place, task):
    """Rows of the data and what lmms-eval scored of each, from its own log."""
    (file,) = (folder_of(place, task) / "lmms_eval").rglob("*samples_*.jsonl")
    return [(ROWS[task][sample["doc_id"]], sample["filtered_resps"]) for sample in lines(file)]


def by_kind(said, key, kinds):
    return [mean(text == right for doc, text, right in said if doc[key] == kind) for kind in kinds]


def mlvu(samples, kinds):
    """E and F are options of the test questions that lmms-eval does not read."""
    said = [(doc, text, doc["answer"] if doc["answer"] in "ABCD" else None) for doc, text in samples]
    return mean(by_kind(said, "task_type", kinds))


def vsibench(samples):
    said = [(doc, text, doc["ground_truth"]) for doc, text in samples]
    directions = mean(by_kind(said, "question_type", DIRECTIONS))
    numbers = [mean(close(doc, text) for doc, text in samples if doc["question_type"] == kind) for kind in NUMBERS]
    return mean([directions, *by_kind(said, "question_type", CHOICES), *numbers])


def close(doc, text):
    """How many of ten tolerances, from 50% to 5%, a number keeps."""
    off = abs(float(text) - float(doc["ground_truth"])) / float(doc["ground_truth"])
    return mean(off <= tenth / 20 for tenth in range(1, 11))


def share(samples, right):
    return mean(text == right(doc) for doc, text in samples)


BY_HAND = {
    "longvideobench_val_v": lambda samples: share(samples, lambda doc: "ABCD"[doc["correct_choice"]]),
    "mlvu_test": lambda samples: mlvu(samples, MLVU_KINDS),
    "mlvu_dev": lambda samples: mlvu(samples, MLVU_DEV_KINDS),
    "timescope": lambda samples: share(samples, lambda doc: doc["answer"]),
    "longtimescope": lambda samples: share(samples, lambda doc: doc["answer"]),
    "tomato": lambda samples: share(samples, lambda doc: "ABCD"[doc["answer"]]),
    "vsibench": vsibench,
}


@pytest.mark.parametrize("task", BY_HAND)
def test_scores_are_those_computed_by_hand(place, task):
    samples = logged(place, task)
    found = json.loads((folder_of(place, task) / "benchmark.json").read_text())
    assert found["score"] == pytest.approx(100 * BY_HAND[task](samples), abs=1e-3)
    assert 0 < found["score"] < 100 and found["questions"] == len(samples) == len(ROWS[task])


@pytest.mark.parametrize("task", BY_HAND)
def test_the_model_s_answers_are_kept_and_handed_on_as_letters(place, task):
    rows = lines(folder_of(place, task) / LINES)
    wanted = [answer_of(task, number, row) for number, row in enumerate(ROWS[task])]
    assert [row["answer"] for row in sorted(rows, key=lambda row: row["place"])] == wanted
    assert [text for _, text in logged(place, task)] == [text.rstrip(".") for text in wanted]


@pytest.mark.parametrize(("task", "key"), [("mlvu_test", "task_type"), ("mlvu_dev", "task_type")])
def test_a_mean_over_kinds_is_not_one_over_rows(place, task, key):
    samples = logged(place, task)
    over_rows = 100 * mean(text == doc["answer"] and text in "ABCD" for doc, text in samples)
    score = json.loads((folder_of(place, task) / "benchmark.json").read_text())["score"]
    assert abs(score - over_rows) > 3


def test_only_the_dev_split_of_mlvu_is_asked_for_the_best_option(place):
    asked = {task: {row["question"][-14:] for row in lines(folder_of(place, task) / LINES)} for task in BY_HAND}
    assert asked["mlvu_dev"] == {"Best option: ("}
    assert not any("Best option" in text for text in asked["mlvu_test"])


def test_a_tracked_run_gets_scores_and_files_and_the_report_has_them_beside_the_paper_s(place, tmp_path):
    tags = json.loads((place / "run/tags.json").read_text())
    score = json.loads((folder_of(place, "tomato") / "benchmark.json").read_text())["score"]
    assert tags["benchmark.tomato"] == f"{score:.2f}"
    sent = json.loads((place / "run/tracking.json").read_text())["artifacts"]
    assert [f"benchmark/tomato/{LINES}", "benchmark/tomato"] in sent
    text = write_page([place], tmp_path / "report.html").read_text()
    assert f"<td><strong>{score:.1f}</strong></td><td>26.5</td><td>26.2</td><td>22.6</td>" in text
    table = (place / "run/benchmark/table.md").read_text()
    assert f"| tomato | {place / 'run'} | 8 |  | **{score:.1f}** | 26.5 | 26.2 | 22.6 |" in table


def test_two_processes_answer_as_one_and_what_is_answered_is_not_asked_again(place, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run")
    file = tmp_path / "run/benchmark/timescope" / LINES
    before = file.read_text()
    file.write_text("".join(before.splitlines(keepends=True)[:3]))
    asked = ("benchmark", tmp_path / "run", "--tasks", "timescope", "--rows", place / "rows", "--batch", 3)
    assert ran(*asked) == 0 and file.read_text() == before
    assert ran(*asked, "--processes", 2, "--output", tmp_path / "two") == 0
    one, two = (json.loads((f / "timescope/benchmark.json").read_text()) for f in (file.parents[1], tmp_path / "two"))
    assert one["score"] == two["score"] and one["questions"] == two["questions"]
    shared = [lines(tmp_path / "two/timescope" / f"process-{rank}" / LINES) for rank in range(2)]
    key = "place"
    together = sorted((row for rows in shared for row in rows), key=lambda row: row[key])
    assert together == sorted(map(json.loads, before.splitlines()), key=lambda row: row[key])
    assert all(len(rows) == 4 for rows in shared)


def test_what_is_not_there_is_named(place, tmp_path, capsys):
    given = ("benchmark", place / "run", "--output", tmp_path)
    assert ran(*given, "--tasks", "vsibench") == 2
    assert "vsibench needs the data set nyu-visionx/VSI-Bench, which is not in HF_HOME=" in capsys.readouterr().err
    video = place / "hf/mlvu/clips/m1.mp4"
    video.rename(video.with_suffix(".away"))
    assert ran(*given, "--tasks", "mlvu_dev", "--rows", place / "rows") == 2
    assert f"mlvu_dev: video {video} is not there; unpack the videos of sy1998/MLVU_dev" in capsys.readouterr().err
    video.with_suffix(".away").rename(video)
    assert ran(*given, "--tasks", "tomato", "--rows", place / "rows", "attention.method=nothing") == 2
    assert "error: tomato: attention.method" in capsys.readouterr().err


def asked_about(video, **wanted):
    """A request about a video as lmms-eval makes it for its chat models."""
    from lmms_eval.api.instance import Instance

    content = [{"type": "video", "url": str(video)}, {"type": "text", "text": "Which?\nA. one\nB. two"}]
    arguments = (
        "",
        lambda doc: [{"role": "user", "content": content}],
        {"max_new_tokens": 3} | wanted,
        0,
        "own",
        "test",
    )
    return Instance("generate_until", arguments, 0, {"task": "own", "doc_id": 0, "repeats": 1})


def test_the_model_takes_a_design_and_how_it_sees_and_refuses_what_is_not_greedy(place):
    from nsa_lab.benchmark.model import NsaLab

    design = "attention.branches.window.size=5;attention.text_window=3"
    model = NsaLab(str(place / "run"), design=design, fps=1.5, max_frames=4, pixels_per_frame=3136, batch_size=2)
    assert (model.config.attention.branches.window.size, model.config.attention.text_window) == (5, 3)
    assert (model.config.data.fps, model.config.data.max_frames, model.config.data.max_pixels) == (1.5, 4, 3136)
    model.task_dict["own"] = {"test": [{}]}
    video = place / "hf/timescope/t0.mp4"
    (said,) = model.generate_until([asked_about(video)])
    assert said and said == model.generate_until([asked_about(video), asked_about(video)])[1]
    with pytest.raises(NsaLabError, match=r"own: nsa-lab's model answers greedily; .*'temperature': 0\.7"):
        model.generate_until([asked_about(video, temperature=0.7)])
    with pytest.raises(NsaLabError, match=r"own: max_new_tokens is \['None'\]"):
        model.generate_until([asked_about(video, max_new_tokens=None)])
    with pytest.raises(NsaLabError, match="wants likelihoods"):
        model.loglikelihood([])


def test_a_video_that_cannot_be_used_stops_or_counts_as_wrong(place, tmp_path):
    from nsa_lab.benchmark.model import NsaLab

    (tmp_path / "bad.mp4").write_bytes(b"no video")
    model = NsaLab(str(place / "run"))
    model.task_dict["own"] = {"test": [{}]}
    with pytest.raises(
        NsaLabError, match=r"own, row 0: .*bad\.mp4.*or count it as wrong with data\.on_bad_sample=skip"
    ):
        model.generate_until([asked_about(tmp_path / "bad.mp4")])
    model = NsaLab(str(place / "run"), design="data.on_bad_sample=skip", predictions=str(tmp_path / "kept"))
    model.task_dict["own"] = {"test": [{}]}
    assert model.generate_until([asked_about(tmp_path / "bad.mp4")]) == [""]
    (row,) = lines(tmp_path / "kept" / LINES)
    assert row["answer"] is None and "bad.mp4" in row["bad"]


VIDEO, TEXT = {"type": "video", "url": "a.mp4"}, {"type": "text", "text": "Which?"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([TEXT], "asked about one video file; here are 0, 0 images"),
        ([VIDEO, VIDEO, TEXT], "here are 2, 0 images"),
        ([VIDEO, {"type": "image", "url": "a.png"}, TEXT], "here are 1, 1 images"),
        ([VIDEO | {"start_time": 3.0}, TEXT], "sees whole videos"),
        ([VIDEO], "answers one question"),
    ],
)
def test_what_the_model_cannot_be_asked_is_refused(content, said):
    from lmms_eval.protocol import ChatMessages

    from nsa_lab.benchmark.model import _sample

    with pytest.raises(NsaLabError, match=f"own, row 3: nsa-lab's model .*{said}"):
        _sample(ChatMessages(messages=[{"role": "user", "content": content}]), "own, row 3")


def test_a_system_turn_and_the_question_s_parts_are_kept():
    from lmms_eval.protocol import ChatMessages

    from nsa_lab.benchmark.model import _sample

    turns = [
        ("system", [{"type": "text", "text": "Be brief."}]),
        ("user", [VIDEO, TEXT, {"type": "text", "text": "A?\n"}]),
    ]
    sample = _sample(ChatMessages(messages=[{"role": role, "content": content} for role, content in turns]), "x")
    assert (sample.system, str(sample.video), sample.turns[0].question) == ("Be brief.", "a.mp4", "Which?\nA?")
