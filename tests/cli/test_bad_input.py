"""Bad input of every kind: one clear line that names the thing and the remedy, exit code 2, no traceback."""

import json
import os
import subprocess
import sys

import av
import numpy as np
import pytest
import yaml

from nsa_lab import cli
from nsa_lab.config import load_config
from nsa_lab.config.identity import defaults
from nsa_lab.config.sizes import no_such_folder
from nsa_lab.training.directory import RunDirectory

SWEEP = """
BASE = "base.yaml"
OBJECTIVES = {"val/accuracy": "maximize"}
def suggest(trial):
    return {"seed": trial.suggest_int("seed", 0, 9)}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory of a command: base.yaml trains one step on clip.mp4."""
    monkeypatch.chdir(tmp_path)
    write_clip("clip.mp4")
    write_annotations(row())
    base = {
        "data": {"annotations": "rows.json", "val_annotations": "rows.json", "videos": "."},
        "model": {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "num_kv_heads": 1},
        "training": {"steps": 1, "batch_size": 1},
        "tracking": {"enabled": False},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    (tmp_path / "space.py").write_text(SWEEP)
    return tmp_path


def write_clip(path):
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=2)
        stream.width = stream.height = 56
        stream.pix_fmt = "yuv420p"
        for shade in range(0, 160, 20):
            frame = av.VideoFrame.from_ndarray(np.full((56, 56, 3), shade, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def row(**changes):
    turns = [{"from": "human", "value": "<image>\nHow bright?"}, {"from": "gpt", "value": "dark"}]
    return {"id": "a", "video": "clip.mp4", "conversations": turns} | changes


def write_annotations(*rows):
    with open("rows.json", "w") as file:
        json.dump(rows, file)


@pytest.fixture
def refused(capfd):
    """Runs a command that must be refused; gives the lines that it says."""

    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main(list(arguments))
        out, err = capfd.readouterr()
        assert end.value.code == 2, (end.value.code, out, err)
        assert "Traceback" not in err
        lines = [line for line in err.splitlines() if not line.startswith("notice: ")]
        assert all(line.startswith("error: ") for line in lines), err
        return lines

    return call


def one(lines, *parts):
    assert len(lines) == 1, lines
    for part in parts:
        assert part in lines[0], lines[0]
    assert len(lines[0]) < 400 + 3 * len(os.getcwd())


def test_the_input_that_the_others_spoil_is_good(folder):
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "base.yaml", "--quiet"])
    assert not end.value.code


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("training.stepz=3", ("training.stepz", "unknown key", "did you mean 'steps'?")),
        ("training.steps=soon", ("training.steps", "'soon' is not an integer")),
        ("attention.method=dens", ("attention.method", "did you mean 'dense'?", "nsa, dense")),
        ("attention.mode=dense", ("attention.mode", "is called method")),
        ("attention.partition.block_size=0", ("attention.partition.block_size", "0 is not positive")),
        ("attention.branches.window.size=0", ("window.size", "use 1 or more", "enabled=false")),
        ("model.num_kv_heads=4", ("model.num_heads", "2 heads do not divide over 4", "change num_kv_heads")),
        ("attention.layers={5: {method: dense}}", ("attention.layers.5", "layers 0 to 1", "shorten")),
        ("training.steps", ("'training.steps' is not key=value", "training.steps=200")),
        ("seed=-1", ("seed", "-1 is negative")),
        ("training.devices=3", ("do not divide over 3 processes", "training.accumulate to a multiple of 3")),
        ("name=???", ("name", "??? stands for a value that is missing")),
        ("model.path=???", ("model.path", "??? stands for a value that is missing")),
        ("name=${x}", ("name", "holds '${'", "write the value itself")),
        (f"seed={'9' * 5000}", ("override 'seed=999", "cannot be parsed")),
    ],
)
def test_settings(folder, refused, override, parts):
    one(refused("train", "base.yaml", override), *parts)


def test_a_number_that_is_too_large_for_any_setting(folder, refused):
    """Wherever it stands: no arithmetic is done on it before it is refused."""
    numbers = [k for k, v in defaults().items() if isinstance(v, int | float) and not isinstance(v, bool)]
    lines = refused("show", "base.yaml", *(f"{key}={'9' * 400}" for key in numbers))
    assert len(lines) == len(numbers) > 60
    assert all("is beyond the largest number that a setting takes" in line and len(line) < 200 for line in lines)


@pytest.mark.parametrize("command", ["train", "show", "sweep", "compare"])
def test_a_folder_in_place_of_a_file(folder, refused, command):
    (folder / "designs.yaml").mkdir()
    (folder / "designs.py").mkdir()
    file = "designs.yaml" if command in ("train", "show") else "designs.py"
    one(refused(command, file), f"file {file} is a folder; name a")


def test_all_branches_off(folder, refused):
    off = [f"attention.branches.{branch}.enabled=false" for branch in ("compression", "selection", "window")]
    one(refused("train", "base.yaml", *off), "attention.branches", "all branches are off", "method=dense")


def test_several_faults_are_said_at_once(folder, refused):
    lines = refused("train", "base.yaml", "training.stepz=3", "attention.method=dens", "seed=x")
    assert len(lines) == 3


def test_missing_config_file(folder, refused):
    one(refused("train", "bass.yaml"), "bass.yaml does not exist", "did you mean base.yaml?")


def test_broken_yaml(folder, refused):
    (folder / "base.yaml").write_text("training: {steps: 3\nname: x: y")
    one(refused("train", "base.yaml"), "base.yaml", "not readable YAML", "correct the file")


@pytest.mark.parametrize("text", ["a: " + "[" * 3000, f"seed: {'9' * 5000}", "- a list", "a: &x {b: *x}", "a: \0"])
def test_yaml_that_is_no_config(folder, refused, text):
    (folder / "base.yaml").write_text(text)
    one(refused("train", "base.yaml"), "base.yaml")


def test_extends_in_a_circle(folder, refused):
    (folder / "one.yaml").write_text("extends: two.yaml")
    (folder / "two.yaml").write_text("extends: one.yaml")
    one(refused("show", "one.yaml"), "one.yaml", "circle", "remove")


# Sweeps


def test_sweep_without_suggest(folder, refused):
    (folder / "space.py").write_text(SWEEP.replace("def suggest", "def sugest"))
    one(refused("sweep", "space.py"), "space.py", "defines no suggest")


def test_sweep_with_unknown_sampler(folder, refused):
    (folder / "space.py").write_text(SWEEP + 'SAMPLER = "tpee"\n')
    one(refused("sweep", "space.py"), "tpee", "tpe")


def test_sweep_storage_that_does_not_answer(folder, refused):
    lines = refused("sweep", "space.py", "--storage", "postgresql://nobody@127.0.0.1:9/studies")
    one(lines, "postgresql://nobody@127.0.0.1:9/studies")


def test_sweep_storage_that_is_no_database(folder, refused):
    (folder / "studies.db").write_text("not a database, but long enough to have a header that is wrong" * 20)
    url = f"sqlite:///{folder / 'studies.db'}"
    one(refused("sweep", "space.py", "--storage", url), "studies.db", "cannot be opened", "--storage")


def test_unknown_study(folder, refused):
    import optuna

    storage = f"sqlite:///{folder / 'studies.db'}"
    optuna.create_study(study_name="space", storage=storage)
    lines = refused("sweep", "show", "spice", "--storage", storage)
    one(lines, "'spice' does not exist", "did you mean 'space'?")


# Videos and annotations


def test_missing_video(folder, refused):
    write_annotations(row(), row(id="b", video="clap.mp4"))
    one(refused("train", "base.yaml"), "rows.json: row 2", "clap.mp4 does not exist", "data.videos")


def test_truncated_video(folder, refused):
    os.truncate("clip.mp4", os.path.getsize("clip.mp4") // 2)
    one(refused("train", "base.yaml", "--quiet"), "clip.mp4", "data.on_bad_sample=skip")


def test_text_in_place_of_a_video(folder, refused):
    (folder / "clip.mp4").write_text("this is no video")
    one(refused("train", "base.yaml", "--quiet"), "clip.mp4", "data.on_bad_sample=skip")


def test_bad_video_in_a_worker_process(folder, refused):
    (folder / "clip.mp4").write_text("this is no video")
    one(refused("train", "base.yaml", "--quiet", "data.workers=1"), "clip.mp4", "data.on_bad_sample=skip")


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ("{]", ("rows.json: line 1", "not JSON", "correct the line")),
        ("", ("rows.json", "no samples", "write at least one row")),
        ("[]", ("rows.json", "no samples", "write at least one row")),
        (json.dumps([{"video": "clip.mp4"}]), ("row 1", "neither `conversations` nor `messages`", "add")),
        (json.dumps([row(conversations=[])]), ("row 1", "`conversations` is empty", "give")),
        (
            json.dumps([row(conversations=[{"from": "human", "value": "How bright?"}])]),
            ("row 1", "question first, answer last"),
        ),
    ],
)
def test_annotations(folder, refused, rows, parts):
    (folder / "rows.json").write_text(rows)
    one(refused("train", "base.yaml"), *parts)


def test_missing_annotations(folder, refused):
    one(refused("train", "base.yaml", "data.annotations=rowz.json"), "rowz.json do not exist", "correct the path")


def test_nothing_to_validate_on(folder, refused):
    one(refused("train", "base.yaml", "data.val_annotations=null"), "validate", "data.val_annotations")


# Runs


def test_damaged_checkpoint(folder, refused):
    checkpoints = folder / "mine" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "last.ckpt").write_bytes(b"PK\x03\x04 cut off")
    lines = refused("train", "base.yaml", "--quiet", "--dir", "mine")
    one(lines, "last.ckpt is damaged", "training.resume=false")


def test_directory_of_another_config(folder, refused):
    RunDirectory.prepare(load_config("base.yaml", ["seed=7"]), folder / "mine")
    lines = refused("train", "base.yaml", "--dir", "mine")
    one(lines, "mine belongs to another config", "choose another directory, or delete")


def test_output_that_cannot_be_written(folder, refused):
    (folder / "taken").write_text("a file where the folder should be")
    one(refused("train", "base.yaml", "output.dir=taken"), "taken", "output.dir=DIR")


def test_model_that_does_not_exist(folder, refused):
    one(
        refused("train", "base.yaml", "model.path=weights/of/none"), "model.path: weights/of/none", "give the folder of"
    )
    RunDirectory.prepare(load_config("base.yaml"), folder / "runs" / "smoke-0123")
    for typed in ("runs/smoke-0132", "run/smoke-0123"):
        one(refused("train", "base.yaml", f"model.path={typed}"), typed, "did you mean 'runs/smoke-0123'?")
    assert no_such_folder("Qwen/Qwen2.5-VL-3B-Instruct") is None and no_such_folder("runs/smoke-0123") is None
    assert "does not exist" in no_such_folder("runs/other") and "Qwen" in no_such_folder("./Qwen")


def test_nothing_to_push(folder, refused):
    one(refused("push", "."), "holds no record", "give a run directory")


def test_tracking_uri_that_is_none(folder, refused):
    lines = refused("train", "base.yaml", "--quiet", "tracking.enabled=true", "tracking.uri=mlflow.db")
    one(lines, "mlflow.db", "sqlite:///")


def test_tracking_server_that_does_not_answer(folder, refused, monkeypatch):
    monkeypatch.setattr("nsa_lab.tracking.tracker.START_PATIENCE_S", 0.0)
    uri = "http://127.0.0.1:9"
    lines = refused("train", "base.yaml", "--quiet", "tracking.enabled=true", f"tracking.uri={uri}")
    one(lines, uri, "nsa-lab push", "tracking.enabled=false")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["train", "bass.yaml"], "bass.yaml does not exist"),
        pytest.param(["push", "."], "holds no record", marks=pytest.mark.slow),
    ],
)
def test_a_shell_sees_the_same(folder, arguments, part):
    command = [sys.executable, "-m", "nsa_lab.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and not done.stdout
    one(done.stderr.splitlines(), part)
