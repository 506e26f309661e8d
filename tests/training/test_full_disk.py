"""A disk that is full in earnest: a small tmpfs below a training's and a sweep's output folder."""

import json
import subprocess
import sys
import time
from collections import Counter

import pytest

from nsa_disks import small_disk
from nsa_lab.config import load_config, to_yaml
from nsa_lab.errors import NsaLabError
from nsa_lab.search.rows import read_outcome
from nsa_lab.search.storage import load_study, open_storage
from nsa_lab.training import run
from nsa_lab.training.directory import read_series
from nsa_testing import TINY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SWEEP = """
BASE = "base.yaml"
OBJECTIVES = {"val/loss": "minimize", "budget/keys_per_query": "minimize"}
SAMPLER = "random"
REFERENCES = {}

def suggest(trial):
    return {"attention.branches.window.size": trial.suggest_int("window", 4, 4000)}
"""


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", 64) as found:
        yield found


@pytest.fixture
def config(clips, disk):
    places = {"data.cache_dir": str(clips), "output.dir": str(disk.path / "runs"), "training.threads": 1}
    return load_config(None, TINY | places | {"tracking.enabled": True})


def curves(home):
    return {k: v for k, v in read_series(home / "metrics.jsonl").items() if k.startswith(("train/", "val/", "gate/"))}


@pytest.mark.parametrize("step", [2, 4, 6])  # before the first checkpoint; at a validation; at the second checkpoint
def test_a_training_goes_on_where_the_disk_was_full(config, disk, tmp_path, step):
    home, whole = disk.path / "runs" / "full", tmp_path / "whole"

    def fill(progress):
        if progress.step == step:
            disk.fill()
        return False

    with pytest.raises(NsaLabError) as error:
        run(config, directory=home, on_progress=fill, progress_bar=False)
    said = str(error.value)
    assert "\n" not in said and "No space left on device" in said and "make room and run the same command again" in said
    assert not (home / "summary.json").exists()
    disk.make_room()
    resumed = run(config, directory=home, progress_bar=False)
    assert not resumed.recorded
    run(config, directory=whole, progress_bar=False)
    assert curves(home) == curves(whole)
    check_tracked(config, resumed)


def check_tracked(config, result):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{config.output.dir}/mlflow.db")
    recorded = client.get_run(result.tracking_id)
    assert recorded.info.status == "FINISHED"
    found = client.get_metric_history(result.tracking_id, "train/loss")
    assert {m.step: m.value for m in found} == read_series(result.directory / "metrics.jsonl")["train/loss"]


def sweep(folder, storage):
    command = [sys.executable, "-m", "nsa_lab.cli", "sweep", "space.py", "--trials", "3", "--workers", "2"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, "--storage", storage, "training.steps=30"], cwd=folder, **options)


@pytest.mark.parametrize("place", ["disk", "."], ids=["the study is on it too", "the study is elsewhere"])
def test_a_sweep_goes_on_where_the_disk_was_full(config, disk, tmp_path, place):
    storage = f"sqlite:///{tmp_path / place}/studies.db"
    (tmp_path / "base.yaml").write_text(to_yaml(config))
    (tmp_path / "space.py").write_text(SWEEP)
    study = disk.path / "runs/studies/space"
    process = sweep(tmp_path, storage)
    while process.poll() is None and not list(study.glob("trial-*/checkpoints/last.ckpt")):
        time.sleep(0.02)
    disk.fill()
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 2, output
    assert "Traceback" not in output and len([line for line in output.splitlines() if "error:" in line]) == 1, output
    assert "No space left" in output or "disk is full" in output, output
    disk.make_room()
    process = sweep(tmp_path, storage)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    rows = read_outcome(load_study(open_storage(storage), "space")).rows
    states = Counter(row.state for row in rows)
    assert states.keys() <= {"complete", "killed"}, (states, output)
    complete = [row for row in rows if row.state == "complete"]
    assert len({row.number for row in complete}) == len(complete) >= 3
    assert {row.number for row in rows if row.state == "killed"} <= {row.number for row in complete}
    for home in study.glob("trial-*"):
        assert json.loads((home / "summary.json").read_text())["stopped"] is False
        assert set(read_series(home / "metrics.jsonl")["train/loss"]) == set(range(1, 31))
