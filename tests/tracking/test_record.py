"""A run's record on disk and in MLflow, when the run goes on, ends, or was changed or damaged."""

import errno
import json
import math
import os
import socket
import subprocess
import sys
from contextlib import nullcontext

import pytest

from nsa_lab import origin, tracking
from nsa_lab.config import load_config
from nsa_lab.errors import NsaLabError
from nsa_lab.files import LOCK, FileLock, writing
from nsa_lab.tracking import Tracker
from nsa_lab.tracking.record import Record
from nsa_tracking import client_of, config_in, full_disk


def test_a_run_is_recorded_here_and_there(store, tmp_path):
    config = config_in(store)
    tracker = Tracker.open(config, tmp_path / "run", tags={"study": "s1"})
    for step in range(700):
        tracker.metrics({"train/loss": 1 / (step + 1), "val/accuracy": math.nan}, step)
    tracker.metrics({"gate/window": 0.5, "gate/layer00/window": 0.5}, 700)
    (tmp_path / "curve.png").write_bytes(b"picture")
    tracker.artifact(tmp_path / "curve.png", "pictures")
    tracker.finish()
    client = client_of(config)
    run = client.get_run(tracker.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "needle-nsa")
    assert run.data.params["attention.branches.window.size"] == "256"
    assert not any(name.startswith(("output.", "tracking.")) for name in run.data.params)
    wanted = {
        "state": "finished",
        "study": "s1",
        "partition": "uniform",
        "reducer": "none",
        "model": "nano",
        "tasks": "needle",
    }
    assert wanted.items() <= run.data.tags.items()
    assert run.data.tags["branches"] == "compression+selection+window"
    assert len(run.data.tags["config_hash"]) == 12 and run.data.tags["host"] == socket.gethostname()
    assert len(client.get_metric_history(tracker.run_id, "train/loss")) == 700
    assert {f.path for f in client.list_artifacts(tracker.run_id)} >= {"config.yaml", "pictures"}
    assert run.info.artifact_uri.startswith((store / "mlartifacts").as_uri())
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(701))
    assert "gate/window" in run.data.metrics and "gate/layer00/window" not in run.data.metrics
    assert lines[700]["metrics"]["gate/layer00/window"] == 0.5
    assert lines[1]["metrics"]["train/loss"] == 0.5 and math.isnan(lines[1]["metrics"]["val/accuracy"])
    assert json.loads((tmp_path / "run/params.json").read_text())["seed"] == "0"
    assert load_config(tmp_path / "run/config.yaml") == config


def test_what_cannot_change_a_result_is_no_param_and_may_change(store, tmp_path):
    first = Tracker.open(config_in(store), tmp_path)
    first.finish("KILLED")
    other = config_in(store, **{"training.threads": 1, "training.log_every": 3, "data.workers": 2})
    again = Tracker.open(other, tmp_path)
    again.finish()
    params = client_of(other).get_run(again.run_id).data.params
    assert again.run_id == first.run_id
    assert "training.steps" in params and not {"name", "training.threads", "data.workers"} & params.keys()


def test_uncommitted_changes_are_kept(store, tmp_path, monkeypatch):
    source = origin.Source("abc", "diff --git a b\n")
    monkeypatch.setattr(origin, "source_state", lambda: source)
    tracker = Tracker.open(config_in(store), tmp_path)
    tracker.finish()
    run = client_of(config_in(store)).get_run(tracker.run_id)
    assert (run.data.tags["commit"], run.data.tags["dirty"]) == ("abc", "true")
    assert "dirty.diff" in {f.path for f in client_of(config_in(store)).list_artifacts(tracker.run_id)}
    assert (tmp_path / "dirty.diff").read_text() == "diff --git a b\n"


def test_a_run_left_unfinished_goes_on(store, tmp_path):
    config = config_in(store)
    tracker = Tracker.open(config, tmp_path)
    tracker.metrics({"train/loss": 2.0}, 1)
    tracker.finish("KILLED")
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "ti')
    again = Tracker.open(config, tmp_path)
    assert again.run_id == tracker.run_id
    assert client_of(config).get_run(again.run_id).info.status == "RUNNING"
    again.metrics({"train/loss": 1.0}, 2)
    with pytest.raises(NsaLabError, match=r"seed=0, now 1; params of a run cannot change"):
        again.params({"seed": 1})
    again.finish()
    run = client_of(config).get_run(again.run_id)
    assert (run.info.status, run.data.tags["state"]) == ("FINISHED", "finished")
    history = client_of(config).get_metric_history(again.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 2.0), (2, 1.0)]
    assert tracking.last_run_id(tmp_path) == again.run_id

    fresh = Tracker.open(config, tmp_path)
    fresh.finish()
    assert fresh.run_id != again.run_id, "a finished run must not be written to"
    assert len((tmp_path / "metrics.1.jsonl").read_text().splitlines()) == 2
    for options in ({"run_id": fresh.run_id}, {"again": True}):
        named = Tracker.open(config, tmp_path, **options)
        named.finish()
        assert named.run_id == fresh.run_id
    elsewhere = Tracker.open(config_in(store, **{"tracking.experiment": "other"}), tmp_path, again=True)
    elsewhere.finish()
    assert elsewhere.run_id != fresh.run_id, "a run does not move to another experiment"


def killed(config, directory, **summary):
    """A run whose process was killed after it had trained; with `summary` it had written that too."""
    tracker = Tracker.open(config, directory)
    tracker.metrics({"train/loss": 1.0}, 1)
    tracker.sender.close(20)
    tracker.unlock()
    if summary:
        (directory / "summary.json").write_text(json.dumps(summary))
        os.utime(directory / "summary.json", (0, tracker.state.started // 1000 + 60))
    return tracker.run_id


def test_a_run_killed_before_its_record_ended_is_finished_by_the_next_call(store, tmp_path):
    config = config_in(store)
    ends = {"over": {"stopped": False}, "stopped": {"stopped": True}, "cut": {}, "both": {"stopped": False}}
    runs = {name: killed(config, tmp_path / name, **summary) for name, summary in ends.items()}
    both = Record.take(tmp_path / "both")
    both.tags({"state": "killed"})  # as older versions did
    both.update(status="KILLED")
    both.unlock()
    tracking.finish_left(tmp_path / "over")
    found = client_of(config).get_run(runs["over"])
    assert (found.info.status, found.data.tags["state"]) == ("FINISHED", "finished")
    assert found.info.end_time == found.info.start_time // 1000 * 1000 + 60_000
    assert tracking.push(tmp_path) == [tmp_path / name for name in ("both", "cut", "stopped")]
    status = {name: client_of(config).get_run(run).info.status for name, run in runs.items()}
    assert status == {"over": "FINISHED", "stopped": "KILLED", "cut": "KILLED", "both": "FINISHED"}
    assert tracking.push(tmp_path) == []


def test_a_changed_config_is_refused_and_the_directory_released(store, tmp_path):
    Tracker.open(config_in(store), tmp_path).finish("FAILED")
    for _ in range(2):
        with pytest.raises(NsaLabError, match=r"training\.steps=300, now 9"):
            Tracker.open(config_in(store, **{"training.steps": 9}), tmp_path)


def test_a_record_of_another_version_is_named(store, tmp_path):
    Tracker.open(config_in(store, **{"tracking.enabled": False}), tmp_path).finish()
    content = json.loads((tmp_path / "tracking.json").read_text())
    (tmp_path / "tracking.json").write_text(json.dumps(content | {"colour": "red"}))
    with pytest.raises(NsaLabError, match=r"tracking.json has colour, of which this version knows nothing; remove it"):
        Tracker.open(config_in(store), tmp_path)


@pytest.mark.parametrize("name", ["tracking.json", "params.json", "tags.json"])
def test_a_damaged_record_is_named(store, tmp_path, name):
    Tracker.open(config_in(store, **{"tracking.enabled": False}), tmp_path).finish()
    (tmp_path / name).write_text((tmp_path / name).read_text()[:20])
    for _ in range(2):
        with pytest.raises(NsaLabError, match=rf"{name} is damaged \(.*remove it to start a new record"):
            Tracker.open(config_in(store), tmp_path)
    with pytest.raises(NsaLabError, match=f"{name} is damaged") as kept:
        Record.take(tmp_path)
    assert FileLock(tmp_path / LOCK).take() and kept.tb  # the error, which a notebook keeps, does not keep the lock


def test_two_processes_cannot_record_in_one_directory(store, tmp_path, monkeypatch):
    monkeypatch.setattr("nsa_lab.tracking.record.LOCK_PATIENCE_S", 0.0)
    tracker = Tracker.open(config_in(store), tmp_path)
    with pytest.raises(NsaLabError, match="another process records a run"):
        Tracker.open(config_in(store), tmp_path)
    tracker.finish()


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (KeyboardInterrupt, "KILLED"), (ValueError, "FAILED")]
)
def test_a_run_ends_as_its_block_does(store, tmp_path, monkeypatch, caplog, error, status):
    def leave():
        with Tracker.open(config_in(store, **{"tracking.enabled": False}), tmp_path):
            if error is not None:
                raise error

    with pytest.raises(error) if error else nullcontext():
        leave()
    assert json.loads((tmp_path / "tracking.json").read_text())["status"] == status
    monkeypatch.setattr(Tracker, "finish", full_disk)
    with pytest.raises(error or OSError):
        leave()
    assert ("the tracking record was not closed: full" in caplog.text) == (error is not None)


def test_a_full_disk_is_said_once(store, tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Tracker, "finish", full)
    opened = Tracker.open(config_in(store, **{"tracking.enabled": False}), tmp_path)
    with pytest.raises(NsaLabError), opened, writing(tmp_path, "make room"):
        full()
    assert not caplog.text


@pytest.mark.slow
def test_importing_tracking_does_not_import_mlflow():
    code = "import sys, nsa_lab.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
