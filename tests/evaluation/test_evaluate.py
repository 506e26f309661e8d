"""Evaluations on a tiny model of random weights, whose own answers serve as the true ones."""

import csv
import json
import math
import shutil

import pytest
import torch

from nsa_lab import ask, build_model, evaluate, load_model
from nsa_lab.cli import app as cli
from nsa_lab.comparison.statistics import share_interval
from nsa_lab.data import Sample, Turn, VideoDataset
from nsa_lab.data.collate import pack
from nsa_lab.errors import NsaLabError
from nsa_lab.evaluation import predictions as kept
from nsa_lab.evaluation.decode import greedy
from nsa_lab.evaluation.evaluate import accuracies, weights_digest
from nsa_lab.evaluation.questions import read_questions
from nsa_lab.model import measure_budget
from nsa_lab.tracking import Tracker
from nsa_testing import stored_run, tiny_config, tiny_tokenizer
from nsa_videos import write

LIMIT = 5


@pytest.fixture(scope="module")
def place(tmp_path_factory, clips):
    """A folder with the run of a random model, two videos of unequal length, and questions about them."""
    folder = tmp_path_factory.mktemp("evaluate")
    given = ("tasks.needle={frames: 8, train_clips: 1, val_clips: 4}", f"data.cache_dir={clips}", "training.threads=1")
    config = tiny_config(*given, "training.accelerator=cpu", f"output.dir={folder}", "tracking.enabled=false")
    torch.manual_seed(0)
    stored_run(folder / "run", config, build_model(config))
    (folder / "videos").mkdir()
    for name, frames in (("long.mp4", 120), ("short.mp4", 60)):
        write(folder / "videos" / name, times=range(frames), noise=True)
    model = load_model(folder / "run")
    asked = ("long.mp4", "What?"), ("short.mp4", "Where is it?"), ("long.mp4", "Why?")
    rows = []
    for number, (name, question) in enumerate(asked):
        answer = ask(model, folder / "videos" / name, question, max_new_tokens=LIMIT)
        rows.append(row(f"r{number}", name, (question, answer), task="even" if number % 2 == 0 else "odd"))
    rows[1]["conversations"][1]["value"] = "something else"
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder


def row(name, video, *turns, **more):
    said = [{"from": who, "value": text} for turn in turns for who, text in zip(("human", "gpt"), turn, strict=True)]
    return {"id": name, "video": video, "conversations": said} | more


def evaluated(place, output=None, **options):
    given = {"videos": place / "videos", "batch": 2, "max_new_tokens": LIMIT} | options
    return evaluate(load_model(place / "run"), place / "rows.json", output, **given)


def test_answers_in_a_batch_are_those_alone(place, clips):
    model = load_model(place / "run")
    data = VideoDataset([], tiny_tokenizer(clips), model.experiment.data)
    names = (("long.mp4", "What?"), ("short.mp4", "Where is it, and how often?"), ("short.mp4", "?"))
    samples = [Sample("x", place / "videos" / name, (Turn(question, None),), "x") for name, question in names]
    examples = [data.example(sample) for sample in samples]
    assert len({len(example.input_ids) for example in examples}) == 3
    together = greedy(model, examples, -1, 6)
    assert together == [greedy(model, [example], -1, 6)[0] for example in examples]
    assert len({tuple(ids) for ids in together}) > 1 and [len(ids) for ids in together] == [6, 6, 6]
    assert together == greedy(model, examples, -1, 6, prefill_chunk=7)
    end = together[0][2]
    cut = [ids[: ids.index(end)] if end in ids else ids for ids in together]
    assert greedy(model, examples, end, 6) == cut, "one row ends, the others go on"


def test_right_answers_are_counted_by_group_and_written(place, clips, tmp_path):
    told = []
    found = evaluated(place, tmp_path / "out", on_progress=lambda *numbers: told.append(numbers))
    assert [(line.group, line.questions, line.correct) for line in found.accuracies] == [
        ("even", 2, 2),
        ("odd", 1, 0),
        ("all", 3, 2),
    ]
    assert found.accuracy == pytest.approx(2 / 3) and told == [(0, 3, 0), (2, 3, 1), (3, 3, 2)]
    lines = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    assert lines == found.predictions and [line["id"] for line in lines] == ["r0", "r1", "r2"]
    assert lines[1]["expected"] == "something else" and lines[1]["correct"] is False
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    model = load_model(place / "run")
    samples = read_questions(model.experiment, place / "rows.json", place / "videos")[0][:2]
    data = VideoDataset([], tiny_tokenizer(clips), model.experiment.data)
    packed = pack([data.example(question.sample) for question in samples])
    assert summary["budget"] == found.budget == pytest.approx(measure_budget(model, packed)), "as in a validation"
    assert summary["accuracies"][2]["low"] == pytest.approx(share_interval(2, 3)[0]) and summary["commit"]
    with open(tmp_path / "out/accuracy.csv") as stream:
        assert [line["group"] for line in csv.DictReader(stream)] == ["even", "odd", "all"]


def test_what_is_answered_is_not_asked_again(place, tmp_path, monkeypatch):
    file = tmp_path / "predictions.jsonl"
    whole = evaluated(place, tmp_path)
    before = file.read_text()
    first, second, third = before.splitlines(keepends=True)
    changed = first.replace('"correct": true', '"correct": false')
    file.write_text(changed + third + second[:20])  # as a kill leaves it
    asked = []
    monkeypatch.setattr(kept.Predictions, "add", spy(asked, kept.Predictions.add))
    again = evaluated(place, tmp_path)
    assert asked == [["r1"]] and file.read_text() == changed + third + second
    assert again.accuracies[-1].correct == 1 and [r["id"] for r in again.predictions] == ["r0", "r1", "r2"]
    assert whole.accuracies[-1].correct == 2


def spy(asked, add):
    def noted(self, rows):
        asked.append([row["id"] for row in rows])
        add(self, rows)

    return noted


def test_later_turns_are_asked_after_the_true_earlier_ones(place, tmp_path):
    turns = (("What?", "a true answer"), ("And then?", "x"))
    (tmp_path / "rows.json").write_text(json.dumps([row("two", "short.mp4", *turns)]))
    options = {"videos": place / "videos", "max_new_tokens": LIMIT}
    model = load_model(place / "run")
    found = evaluate(model, tmp_path / "rows.json", **options).predictions
    assert [(line["turn"], line["question"], line["expected"]) for line in found] == [
        (0, "What?", "a true answer"),
        (1, "And then?", "x"),
    ]
    assert found[0]["answer"] == ask(model, place / "videos/short.mp4", "What?", max_new_tokens=LIMIT)
    (tmp_path / "rows.json").write_text(json.dumps([row("two", "short.mp4", ("What?", "another"), turns[1])]))
    assert evaluate(model, tmp_path / "rows.json", **options).predictions[1]["answer"] != found[1]["answer"]


def test_bad_samples_stop_or_are_named_and_left_out(place, tmp_path, caplog):
    rows = json.loads((place / "rows.json").read_text())
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    for name in ("long.mp4", "short.mp4"):
        (tmp_path / name).symlink_to(place / "videos" / name)
    (tmp_path / "rows.json").write_text(json.dumps([rows[0], row("broken", "bad.mp4", ("What?", "x"), task="odd")]))
    options = {"videos": tmp_path, "max_new_tokens": LIMIT, "batch": 1}
    with pytest.raises(NsaLabError, match=r"sample broken: .*bad\.mp4.*data\.on_bad_sample=skip"):
        evaluate(load_model(place / "run"), tmp_path / "rows.json", tmp_path / "out", **options)
    assert len((tmp_path / "out/predictions.jsonl").read_text().splitlines()) == 1, "what was answered is kept"
    model = load_model(place / "run", ["data.on_bad_sample=skip"])
    found = evaluate(model, tmp_path / "rows.json", tmp_path / "out", **options)
    assert "left out: sample broken: " in caplog.text and "bad.mp4" in found.predictions[1]["bad"]
    assert [(line.group, line.questions, line.skipped) for line in found.accuracies] == [
        ("even", 1, 0),
        ("odd", 0, 1),
        ("all", 1, 1),
    ]
    assert math.isnan(found.accuracies[1].accuracy)
    summary = json.loads((tmp_path / "out/summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["accuracies"][1]["accuracy"] is None
    (tmp_path / "bad.mp4").unlink()
    (tmp_path / "bad.mp4").symlink_to(place / "videos/short.mp4")
    mended = evaluate(model, tmp_path / "rows.json", tmp_path / "out", **options)
    assert mended.accuracies[-1].questions == 2, "a mended one is asked"


def test_predictions_of_something_else_are_refused(place, tmp_path):
    with pytest.raises(NsaLabError, match="batch=0 answers nothing"):
        evaluated(place, tmp_path, batch=0)
    evaluated(place, tmp_path)
    with pytest.raises(NsaLabError, match=r"something else \(max_new_tokens 5 there, 6 here\); .*--output"):
        evaluated(place, tmp_path, max_new_tokens=6)
    model = load_model(place / "run")
    with pytest.raises(NsaLabError, match=r"something else \(data \w+ there, \w+ here\)"):
        evaluate(model, "needle", tmp_path, max_new_tokens=LIMIT)
    weights = weights_digest(model)
    model.lm_head.weight.data += 1e-3
    assert weights_digest(model) != weights == weights_digest(load_model(place / "run"))
    with pytest.raises(NsaLabError, match=r"something else \(weights \w+ there, \w+ here\)"):
        evaluate(model, place / "rows.json", tmp_path, videos=place / "videos", max_new_tokens=LIMIT)
    window = load_model(place / "run", ["attention.branches.window.size=5"])
    differ = r"something else \(attention.branches.window.size \d+ there, 5 here\)"
    with pytest.raises(NsaLabError, match=differ):
        evaluate(window, place / "rows.json", tmp_path, videos=place / "videos", max_new_tokens=LIMIT)
    reduced = load_model(place / "run", ["attention.reducer.kind=visionzip", "data.blind=true"])
    differ = r"\(attention.reducer.kind by default there, 'visionzip' here, data.blind by default there, True here\)"
    with pytest.raises(NsaLabError, match=differ):
        evaluate(reduced, place / "rows.json", tmp_path, videos=place / "videos", max_new_tokens=LIMIT)
    about = json.loads((tmp_path / kept.ABOUT).read_text())
    (tmp_path / kept.ABOUT).write_text(json.dumps({key: value for key, value in about.items() if key != kept.READ}))
    with pytest.raises(NsaLabError, match=r"something else \(settings \w+ there, \w+ here\)"):
        evaluate(window, place / "rows.json", tmp_path, videos=place / "videos", max_new_tokens=LIMIT)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", r"predictions\.jsonl:1 is damaged"),
        ("[1]", r"predictions\.jsonl:1 is damaged .*lacks place"),
        ('{"place": 0}', r"predictions\.jsonl:1 is damaged .*lacks turn"),
    ],
)
def test_damaged_predictions_are_named(tmp_path, line, said):
    with kept.recorded(tmp_path, {"weights": "a"}):
        (tmp_path / "predictions.jsonl").write_text(line + "\n")
    with pytest.raises(NsaLabError, match=said), kept.recorded(tmp_path, {"weights": "a"}):
        pass
    (tmp_path / "about.json").unlink()
    with (
        pytest.raises(NsaLabError, match=r"is there without about\.json"),
        kept.recorded(tmp_path, {"weights": "a"}),
    ):
        pass


def test_two_processes_do_not_write_the_same_predictions(tmp_path):
    with (
        kept.recorded(tmp_path, {}),
        pytest.raises(NsaLabError, match="another process evaluates into"),
        kept.recorded(tmp_path, {}),
    ):
        pass


def test_wilson_s_interval_is_the_published_one():
    """Against the closed form."""
    hits, count, z = 7, 20, 1.959963984540054
    share = hits / count
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    assert share_interval(hits, count) == pytest.approx((centre - half, centre + half))
    assert share_interval(0, 10)[0] == 0 and all(map(math.isnan, share_interval(0, 0)))
    assert math.isnan(accuracies([])[-1].accuracy)


def command(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(list(map(str, arguments)))
    said = capsys.readouterr()
    return ended.value.code or 0, said.out, said.err


def test_the_command_evaluates_a_task_and_a_file(place, capsys, tmp_path):
    run = place / "run"
    code, out, err = command(capsys, "evaluate", run, "needle", "--max-new-tokens", 3, "--quiet")
    assert code == 0, err
    assert "needle" in out and f"predictions: {run / 'evaluation/needle'}" in out
    rows = (run / "evaluation/needle/predictions.jsonl").read_text().splitlines()
    assert len(rows) == 4, "the one turn of each validation clip"
    given = ("--videos", place / "videos", "--output", tmp_path, "--max-new-tokens", LIMIT)
    code, out, err = command(capsys, "evaluate", run, place / "rows.json", *given)
    assert code == 0 and "66.7%" in out and "20.8% to 93.9%" in out, out + err
    assert "3/3" in err and "66.7% right" in err
    budget = json.loads((tmp_path / "summary.json").read_text())["budget"]
    assert f"budget/ratio_to_dense {budget['budget/ratio_to_dense']:.1%}" in " ".join(out.split())
    reduced = ("attention.reducer={kind: fastv, fastv: {layer: 1}}", "--output", tmp_path / "reduced")
    out = command(capsys, "evaluate", run, "needle", *reduced, "--max-new-tokens", 3, "--quiet")[1]
    assert "budget/tokens_kept 75.0%" in " ".join(out.split())


def test_an_exported_folder_answers_as_its_run(place, capsys, tmp_path):
    with pytest.raises(SystemExit):
        cli.main(["export", str(place / "run"), str(tmp_path / "exported")])
    given = ("--videos", place / "videos", "--max-new-tokens", LIMIT, "--quiet")
    code, out, err = command(capsys, "evaluate", tmp_path / "exported", place / "rows.json", *given)
    assert code == 0 and f"predictions: {tmp_path / 'exported/evaluation/rows'}" in out, err
    lines = (tmp_path / "exported/evaluation/rows/predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["answer"] for line in lines] == [row["answer"] for row in evaluated(place).predictions]


def test_a_tracked_run_gets_the_files_and_the_accuracy(place, capsys, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run")
    Tracker.open(load_model(place / "run").experiment, tmp_path / "run").finish()
    given = ("--videos", place / "videos", "--max-new-tokens", LIMIT, "--quiet")
    code, _, err = command(capsys, "evaluate", tmp_path / "run", place / "rows.json", *given)
    assert code == 0 and not err
    record = json.loads((tmp_path / "run/tracking.json").read_text())
    names = ("about.json", "predictions.jsonl", "summary.json", "accuracy.csv")
    assert record["artifacts"][-4:] == [[f"evaluation/rows/{name}", "evaluation/rows"] for name in names]
    assert json.loads((tmp_path / "run/tags.json").read_text())["evaluation.rows"] == "0.6667"
    other = ("--output", tmp_path / "dense", "attention.branches.window.size=2")
    assert command(capsys, "evaluate", tmp_path / "run", place / "rows.json", *given, *other)[0] == 0
    tags = json.loads((tmp_path / "run/tags.json").read_text())
    assert {"evaluation.rows", "evaluation.rows-dense"} <= tags.keys() and tags["evaluation.rows"] == "0.6667"
    again = command(capsys, "evaluate", tmp_path / "run", place / "rows.json", *given)
    assert "3 of 3 answers were there already and are not asked again" in again[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("RUN", "nedle"), "nedle is neither an annotation file nor a task; did you mean 'needle'"),
        (("RUN", "no.json"), "no.json is neither an annotation file nor a task; "),
        (("nowhere/at/all", "needle"), "nowhere/at/all"),
        (("RUN", "needle", "data.videos=x"), "data.videos=x: evaluate asks what DATA says; give --videos DIR"),
        (("RUN", "needle", "tasks.needle.enabled=true"), "give the task's name as DATA"),
        (("RUN", "ROWS"), "long.mp4 does not exist"),
        (("RUN", "needle", "--output", "ROWS"), "rows.json is a file, no folder; name another --output"),
    ],
)
def test_bad_commands_are_answered_in_one_line(place, capsys, monkeypatch, arguments, said):
    monkeypatch.chdir(place / "run")
    names = {"RUN": place / "run", "ROWS": place / "rows.json"}
    code, _, err = command(capsys, "evaluate", *(names.get(word, word) for word in arguments), "--quiet")
    assert code == 2 and said in err.splitlines()[-1] and "fault of nsa-lab" not in err, err
