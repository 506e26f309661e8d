"""Runs of a few steps: what they leave behind, and how they end when something goes wrong."""

import dataclasses
import errno
import itertools
import json
import os
import re
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch

import nsa_lab
from nsa_lab import load_model
from nsa_lab.config import load_config, to_dict
from nsa_lab.data import load_samples
from nsa_lab.errors import NsaLabError
from nsa_lab.origin import code_digest
from nsa_lab.runner.job import Job
from nsa_lab.runner.worker import _do
from nsa_lab.tasks.clips import ensure_clips
from nsa_lab.tracking import Tracker
from nsa_lab.tracking.record import Record
from nsa_lab.training import module as training_module
from nsa_lab.training import run
from nsa_lab.training.build import build
from nsa_lab.training.directory import RunDirectory, read_series
from nsa_lab.training.score import MODEL_INPUTS, score_answers

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
FLA = {
    "attention.partition.block_size": 16,
    "attention.branches.selection.block_count": 4,
    "attention.branches.selection.initial_blocks": 1,
    "attention.branches.selection.local_blocks": 2,
}
"""A design that fla runs."""


def train(config, **options):
    return run(config, progress_bar=False, **options)


@pytest.fixture
def one_line():
    """Asserts that an error is one line that holds all of `parts`."""

    def check(error, *parts):
        text = str(error.value)
        assert "\n" not in text
        for part in parts:
            assert part in text, text

    return check


def test_own_videos_train_with_the_shipped_settings(tiny, clips):
    annotations = ensure_clips("needle", tiny().tasks, clips)["train"]
    places = {
        "data.annotations": str(annotations),
        "data.videos": str(annotations.parent),
        "data.cache_dir": str(clips),
    }
    output = {"output.dir": tiny().output.dir, "tracking.enabled": False}
    few = {"training.steps": 1, "training.batch_size": 1, "training.val_every": 1}
    result = train(load_config(EXPERIMENTS / "finetune" / "local.yaml", places | output | few))
    assert result.metrics["val/loss"] > 0
    for size, layers in (("3b", 36), ("7b", 28)):
        load_config(
            EXPERIMENTS / "finetune" / f"qwen2_5_vl_{size}.yaml", [f"attention.layers.20-{layers - 1}.method=dense"]
        )


def test_run_leaves_config_checkpoints_metrics_and_summary(tiny):
    config = tiny()
    result = train(config)
    assert load_config(result.directory / "config.yaml") == config
    assert {path.name for path in (result.directory / "checkpoints").iterdir()} == {"last.ckpt", "previous.ckpt"}
    assert json.loads((result.directory / "summary.json").read_text())["metrics"] == result.metrics
    assert not list(result.directory.rglob(".*.unfinished"))
    assert not result.stopped and result.tracking_id is None
    assert json.loads((result.directory / "tags.json").read_text())["attention_backend"] == "torch"


def test_a_backend_that_cannot_run_here_ends_the_run_before_training(tiny, one_line):
    with pytest.raises(NsaLabError) as error:
        train(tiny({"attention.backend": "fla", "training.accelerator": "cpu", **FLA}))
    one_line(error, "attention.backend=fla cannot run on cpu", "it needs a CUDA device")


def test_run_reports_the_contracted_metrics(tiny):
    result = train(tiny({"training.steps": 5}))
    for name in ("val/loss", "val/accuracy", "val/accuracy/needle", "budget/paper_ratio", "budget/keys_per_query",
                 "train/loss", "throughput/tokens_per_second", "throughput/seconds_per_step", "model/parameters",
                 "gate/layer00/window", "gate/window"):  # fmt: skip
        assert isinstance(result.metrics[name], float), name
    series = read_series(result.directory / "metrics.jsonl")
    params = json.loads((result.directory / "params.json").read_text())
    assert int(params["model/parameters"]) == result.metrics["model/parameters"] and "model/parameters" not in series
    assert sorted(series["train/loss"]) == [1, 2, 3, 4, 5]
    assert sorted(series["val/loss"]) == [4, 5]  # every 4 steps, and at the end
    assert sorted(series["budget/keys_per_query"]) == [0, 4, 5]  # before training and at every validation
    assert series["learning_rate"][1] == pytest.approx(5e-4)  # half of 1e-3: the first of two warm-up steps


def test_the_budget_of_a_learned_partition_is_that_of_the_trained_model(tiny):
    router = {"attention.partition.kind": "router", "attention.partition.router.loss_weight": 1.0}
    result = train(tiny({"training.steps": 8, "training.learning_rate": 0.05, **router}))
    series = read_series(result.directory / "metrics.jsonl")["budget/keys_per_query_with_compressed"]
    assert result.metrics["budget/keys_per_query_with_compressed"] == series[8] != series[0]


@pytest.mark.slow
def test_equal_seeds_give_equal_curves_and_other_seeds_others(tiny, tmp_path):
    losses = [
        read_series(train(tiny({"seed": seed}), directory=tmp_path / name).directory / "metrics.jsonl")["train/loss"]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert losses[0] == losses[1] != losses[2]


def greedy(model, batch, start, count):
    """`count` tokens decoded one by one after the first `start` of a batch of one sample."""
    video = ("pixel_values_videos", "video_grid_thw")
    ids = batch["input_ids"][:, :start]
    with torch.no_grad():
        for _ in range(count):
            inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
            inputs = {k: v if k in video else v[..., : ids.shape[1]] for k, v in inputs.items()}
            logits = model(**inputs | {"input_ids": ids}, use_cache=False).logits[0, -1]
            ids = torch.cat([ids, logits.argmax()[None, None]], dim=1)
    return ids[0, start:]


def test_teacher_forced_accuracy_is_that_of_greedy_decoding(tiny):
    module, data = build(tiny())
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    batch = data.collate([data.val[0]])
    place = (batch["answer_index"][0] == 0).nonzero().squeeze(1)
    wanted = batch["input_ids"][0, place]
    agreed = set()
    for _ in range(40):
        score = score_answers(module.model, batch)
        written = greedy(module.model, batch, int(place[0]), len(place))
        agreed.add((bool(score.correct[0]), torch.equal(written, wanted)))
        score.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert agreed == {(False, False), (True, True)}


def test_finished_run_gives_its_recorded_result(tiny):
    config = tiny()
    first = train(config)
    before = (first.directory / "metrics.jsonl").read_text()
    record = Record.load(first.directory)
    record.update(status="RUNNING", ended=None)  # as a kill leaves it that comes after the summary
    again = train(config)
    assert Record.load(first.directory).state.status == "FINISHED"
    assert again.recorded and not first.recorded
    assert again.metrics == first.metrics
    assert (first.directory / "metrics.jsonl").read_text() == before


def test_no_steps_only_validate_what_a_run_has_learned(tiny):
    trained = train(tiny())
    start = {"model.path": str(trained.directory), "training.steps": 0, "training.warmup_steps": 0}
    result = train(tiny(start))
    same = [name for name in trained.metrics if name.startswith(("val/", "gate/", "budget/", "model/"))]
    assert {name: result.metrics[name] for name in same} == pytest.approx({n: trained.metrics[n] for n in same})
    assert "train/loss" not in result.metrics and not any(result.directory.rglob("*.ckpt"))
    assert train(tiny(start)).recorded
    window = tiny(start | {"attention.branches.compression.enabled": False})
    assert train(window).metrics["val/loss"] != result.metrics["val/loss"]


@pytest.mark.slow
def test_a_retry_of_a_run_that_is_over_tells_the_time_of_its_training(tiny, tmp_path):
    job, words = Job("one", to_dict(tiny()), str(tmp_path / "run")), SimpleNamespace(send=lambda progress: None)
    first, again = _do(job, words), _do(job, words)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert first.seconds == again.seconds == summary["seconds"] > 0.1
    (tmp_path / "run/summary.json").write_text(json.dumps({k: v for k, v in summary.items() if k != "seconds"}))
    assert _do(job, words).seconds is None, "older versions did not write it, and nobody knows it now"


def test_the_time_of_a_resumed_training_is_that_of_all_its_processes(tiny, tmp_path):
    def slow(progress):
        time.sleep(0.2)
        return progress.step == 6  # a checkpoint was written at 3

    assert train(tiny(), directory=tmp_path / "run", on_progress=slow).stopped
    resumed = train(tiny(), directory=tmp_path / "run")
    began = time.monotonic()
    alone = train(tiny(), directory=tmp_path / "alone")
    assert alone.seconds < time.monotonic() - began
    assert resumed.seconds > 6 * 0.2 and not resumed.recorded


@pytest.mark.parametrize("content", ["", '{"metrics": {', "{}", "[]"])
def test_a_damaged_summary_is_named(tiny, tmp_path, one_line, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/summary.json").write_text(content)
    with pytest.raises(NsaLabError) as error:
        train(tiny(), directory=tmp_path / "run")
    one_line(error, "summary.json is damaged", "start over with training.resume=false")


def test_the_origin_is_that_of_the_training_and_no_later_one(tiny, monkeypatch):
    first = train(tiny({"training.steps": 1}))
    origin = (first.directory / "origin.json").read_text()
    assert json.loads(origin)["code"] == code_digest() and json.loads(origin)["device"]
    monkeypatch.setitem(run.__globals__, "code_digest", lambda: "later")
    assert train(tiny({"training.steps": 1})).recorded
    assert (first.directory / "origin.json").read_text() == origin


def test_resume_false_starts_over_in_the_same_directory(tiny):
    first = train(tiny())
    again = train(tiny({"training.resume": False}))
    assert again.directory == first.directory
    assert not again.recorded
    assert again.metrics["val/loss"] == first.metrics["val/loss"]


def test_directory_of_another_config_is_refused(tiny, tmp_path, one_line):
    train(tiny({"training.steps": 1}), directory=tmp_path / "mine")
    with pytest.raises(NsaLabError) as error:
        train(tiny({"seed": 5}), directory=tmp_path / "mine")
    one_line(error, str(tmp_path / "mine"), "another config", "choose another directory")


def test_damaged_checkpoint_is_refused_and_the_one_before_is_named(tiny, tmp_path, one_line):
    def interrupt(progress):
        if progress.step == 7:
            raise KeyboardInterrupt

    config = tiny()
    with pytest.raises(KeyboardInterrupt):
        train(config, directory=tmp_path / "run", on_progress=interrupt)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    flip_a_bit(last)
    with pytest.raises(NsaLabError) as error:
        train(config, directory=tmp_path / "run")
    one_line(error, str(last), "is not as it was written", "previous.ckpt", "training.resume=false")
    os.truncate(last, last.stat().st_size // 2)
    with pytest.raises(NsaLabError) as error:
        train(config, directory=tmp_path / "run")
    one_line(error, str(last), "damaged", "previous.ckpt", "training.resume=false")

    last.with_name("previous.ckpt").rename(last)
    mended, whole = (train(config, directory=tmp_path / name) for name in ("run", "whole"))
    assert mended.metrics["val/loss"] == whole.metrics["val/loss"]


def flip_a_bit(checkpoint):
    """In the middle of its largest tensor, which torch reads without a word."""
    with zipfile.ZipFile(checkpoint) as file:
        largest = max(file.infolist(), key=lambda part: part.file_size)
    with open(checkpoint, "r+b") as stream:
        stream.seek(largest.header_offset + largest.file_size // 2)
        (byte,) = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 64]))


class Bomb:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize(
    "what",
    ["bomb", "no state_dict", *(pytest.param(w, marks=pytest.mark.slow) for w in ("no optimizer_states", "a list"))],
)
def test_a_strangers_checkpoint_is_neither_run_nor_trained_on(what, tiny, tmp_path, one_line):
    config, mark = tiny({"training.steps": 2}), tmp_path / "ran"
    last = train(config, directory=tmp_path / "run").directory / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    if what == "bomb":
        content["callbacks"]["Bomb"] = Bomb(mark)
    torch.save([1] if what == "a list" else {k: v for k, v in content.items() if f"no {k}" != what}, last)
    (tmp_path / "run" / "summary.json").unlink()
    for action in (lambda: train(config, directory=tmp_path / "run"), lambda: load_model(tmp_path / "run")):
        with pytest.raises(NsaLabError) as error:
            action()
        one_line(error, str(last), "damaged", "could run code")
    assert not mark.exists()


def test_nothing_loads_pickles_that_run_code():
    risky = re.compile(r"weights_only=False|\bpickle\.load|allow_pickle=True|trust_remote_code=True")
    files = Path(nsa_lab.__file__).parent.rglob("*.py")
    assert not [str(file) for file in files if risky.search(file.read_text())]


def test_loss_that_is_not_finite_ends_the_run_at_its_step(tiny, tmp_path, monkeypatch, one_line):
    calls = itertools.count(1)

    def poisoned(model, batch, trace):
        score = score_answers(model, batch, trace)
        factor = float("nan") if next(calls) == 5 else 1.0
        return dataclasses.replace(score, loss=score.loss * factor)

    monkeypatch.setattr(training_module, "score_answers", poisoned)
    with pytest.raises(NsaLabError) as error:
        train(tiny({"training.val_every": 100}), directory=tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    one_line(error, "loss became nan at step 5", "learning rate", "samples needle", str(checkpoint), "lower training")
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 3


def test_gradient_that_is_not_finite_ends_the_run(tiny, monkeypatch, one_line):
    def explode(self):
        next(self.parameters()).grad.fill_(float("inf"))

    monkeypatch.setattr(training_module.VideoModule, "on_after_backward", explode)
    with pytest.raises(NsaLabError) as error:
        train(tiny())
    one_line(error, "gradient norm became", "at step 1", "there is no checkpoint yet")


def test_weights_that_are_not_finite_are_not_saved(tiny, tmp_path, monkeypatch, one_line):
    original = training_module.VideoModule.optimizer_step

    def overflow(self, *args, **options):
        original(self, *args, **options)
        if self.trainer.global_step == 5:  # counted up after this call
            with torch.no_grad():
                next(self.parameters()).fill_(float("nan"))

    monkeypatch.setattr(training_module.VideoModule, "optimizer_step", overflow)
    with pytest.raises(NsaLabError) as error:
        train(tiny({"training.val_every": 100}), directory=tmp_path / "run")
    one_line(error, "not finite", "step 6")
    kept = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 3


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_at_a_checkpoint_keeps_the_earlier_one(tiny, tmp_path, monkeypatch, one_line):
    save = L.Trainer.save_checkpoint

    def fills_up(self, path, *args, **options):
        save(self, path, *args, **options)
        if self.global_step == 6:
            full_disk()

    monkeypatch.setattr(L.Trainer, "save_checkpoint", fills_up)
    with pytest.raises(NsaLabError) as error:
        train(tiny({"training.val_every": 100}), directory=tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    one_line(error, "No space left", str(last), "step 6", "make room")
    assert torch.load(last, weights_only=True)["global_step"] == 3
    assert [path.name for path in last.parent.iterdir()] == ["last.ckpt"]

    monkeypatch.undo()
    assert train(tiny({"training.val_every": 100}), directory=tmp_path / "run").metrics["val/loss"] > 0


def test_full_disk_at_a_metric_names_the_directory(tiny, tmp_path, monkeypatch, one_line):
    monkeypatch.setattr(Tracker, "metrics", full_disk)
    with pytest.raises(NsaLabError) as error:
        train(tiny(), directory=tmp_path / "run")
    one_line(error, "No space left", str(tmp_path / "run"), "make room")


def test_caller_may_end_a_run_early(tiny):
    heard = []

    def stop_after_first_validation(progress):
        heard.append((progress.step, progress.validated))
        assert progress.steps == 8
        return progress.validated

    result = train(tiny({"training.log_every": 3}), on_progress=stop_after_first_validation)
    assert result.stopped
    assert heard == [(3, False), (4, True)]
    assert result.metrics["val/accuracy"] >= 0
    assert not train(tiny({"training.log_every": 3})).recorded  # the rest is trained, not taken for done


def test_skipped_samples_are_reported_at_the_end(tiny, tmp_path, caplog):
    config = tiny({"data.cache_dir": str(tmp_path / "clips"), "data.on_bad_sample": "skip"})
    load_samples(config)["train"][3].video.write_text("no video")
    result = train(config)
    assert "1 of 10 train samples were skipped (1 with unreadable video)" in caplog.text
    assert "val samples" not in caplog.text
    assert result.metrics["data/skipped/train"] == 1 and "data/skipped/val" not in result.metrics


def test_settings_that_cannot_change_a_result_keep_the_directory(tiny, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    first = train(tiny())
    other = {"name": "tiny", "training.log_every": 2, "training.threads": 1, "data.memory_cache_mib": 0}
    again = train(tiny(other))
    assert again.recorded and again.directory == first.directory


def test_interrupt_reaches_the_caller_and_marks_the_record(tiny, tmp_path):
    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny(), directory=tmp_path / "run", on_progress=interrupt)
    assert json.loads((tmp_path / "run" / "tracking.json").read_text())["status"] == "KILLED"


@pytest.mark.parametrize("precision", ["bf16-mixed", pytest.param("bf16-true", marks=pytest.mark.slow)])
def test_half_precision_trains_on_cpu(tiny, precision):
    assert train(tiny({"training.precision": precision, "training.steps": 3})).metrics["val/loss"] < 10


def test_activation_checkpointing_changes_no_number(tiny, tmp_path):
    runs = [
        train(tiny({"training.activation_checkpointing": on, "training.steps": 3}), directory=tmp_path / str(on))
        for on in (False, True)
    ]
    assert runs[0].metrics["train/loss"] == pytest.approx(runs[1].metrics["train/loss"], rel=1e-5)


def test_gradient_clip_bounds_the_step_and_logs_the_norm_before(tiny):
    result = train(tiny({"training.gradient_clip": 1e-3, "training.steps": 2}))
    assert result.metrics["gradient_norm"] > 1e-3


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        ({"training.devices": 2}, "training.accumulate to a multiple of 2"),
        pytest.param(
            {"training.accelerator": "gpu"},
            "training.accelerator=cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        ({"training.precision": "16-mixed", "training.accelerator": "cpu"}, "bf16-mixed"),
    ],
)
def test_what_the_machine_cannot_do_is_said_before_anything_is_written(tiny, tmp_path, one_line, overrides, part):
    with pytest.raises(NsaLabError) as error:
        train(tiny(overrides))
    one_line(error, part)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("summary.json", "{}"),
        ("summary.json", "[]"),
        ("summary.json", '{"metrics": {"a": "x"}, "stopped": false, "tracking_id": null}'),
        ("summary.json", '{"metrics": 5, "stopped": false, "tracking_id": null}'),
    ],
)
def test_a_damaged_summary_is_said(tmp_path, file, text, one_line):
    (tmp_path / file).write_text(text)
    with pytest.raises(NsaLabError) as error:
        RunDirectory(tmp_path).result()
    one_line(error, f"{file} is damaged", "start over with training.resume=false")


@pytest.mark.parametrize("line", ["{", "5", '{"step": 1}', '{"step": "x", "metrics": {"a": 1}}'])
def test_a_damaged_line_of_metrics_is_said(tmp_path, line, one_line):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "metrics": {"a": 1}}\n' + line + "\n")
    with pytest.raises(NsaLabError) as error:
        read_series(tmp_path / "metrics.jsonl")
    one_line(error, "metrics.jsonl:2 is damaged", "remove the line")
