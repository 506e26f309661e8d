"""Runs while their store is away, refuses them, or loses an answer."""

import shutil
import threading
import time
from contextlib import contextmanager

import pytest

from nsa_lab import tracking
from nsa_lab.errors import NsaLabError
from nsa_lab.tracking import Tracker
from nsa_lab.tracking import store as store_file
from nsa_lab.tracking import tracker as tracker_file
from nsa_lab.tracking.store import Unreachable
from nsa_tracking import client_of, config_in, full_disk, unreachable, until


def test_an_outage_costs_nothing(store, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("nsa_lab.tracking.sender.INTERVAL_S", 0.05)
    config = config_in(store)
    tracker = Tracker.open(config, tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(store_file, "_send_all", unreachable)
        tracker.metrics({"train/loss": 1.0}, 1)
        time.sleep(0.5)
    tracker.finish()
    assert client_of(config).get_run(tracker.run_id).data.metrics == {"train/loss": 1.0}
    assert "is away (no route); recording in" in caplog.text and "is back after" in caplog.text


def test_a_server_that_stays_away_ends_with_one_error(store, tmp_path, monkeypatch):
    monkeypatch.setattr(tracker_file, "FINISH_PATIENCE_S", 0.5)
    monkeypatch.setattr(tracker_file, "TRIAL_FINISH_PATIENCE_S", 0.5)
    config = config_in(store)
    trackers = [Tracker.open(config, tmp_path / "alone")]
    trackers.append(Tracker.open(config, tmp_path / "trial", parent=trackers[0].run_id))
    with monkeypatch.context() as broken:
        broken.setattr(store_file, "_send_all", unreachable)
        for tracker in trackers:
            tracker.metrics({"train/loss": 1.0}, 1)
        with pytest.raises(NsaLabError, match=r"no route.*everything is kept in .*alone.*`nsa-lab push"):
            trackers[0].finish()
        trackers[1].finish()
    senders = [tracker.sender._thread for tracker in trackers]
    until(lambda: not any(thread.is_alive() for thread in senders))  # what gave up does not go on in the background
    assert tracking.push(tmp_path) == [tmp_path / "alone", tmp_path / "trial"]
    child = client_of(config).get_run(tracking.last_run_id(tmp_path / "trial"))
    assert child.data.metrics == {"train/loss": 1.0} and child.info.status == "FINISHED"
    assert child.data.tags["mlflow.parentRunId"] == trackers[0].run_id


def test_an_answer_that_comes_after_all_is_not_written_over_what_push_wrote(store, tmp_path, monkeypatch):
    monkeypatch.setattr(tracker_file, "FINISH_PATIENCE_S", 0.5)
    config, asked, answer = config_in(store), threading.Event(), threading.Event()
    tracker = Tracker.open(config, tmp_path / "run")

    def hang(*_, **__):
        asked.set()
        assert answer.wait(90)

    with monkeypatch.context() as slow:
        slow.setattr(store_file, "_log", hang)
        tracker.metrics({"train/loss": 1.0}, 1)
        with pytest.raises(NsaLabError, match=r"too slow.*`nsa-lab push"):
            tracker.finish()
        assert asked.is_set()
    other = shutil.copy(store / "mlflow.db", tmp_path / "other.db")  # quicker than a new one
    elsewhere = f"sqlite:///{other}"
    assert tracking.push(tmp_path, elsewhere) == [tmp_path / "run"]
    sent = (tmp_path / "run/tracking.json").read_text()
    answer.set()
    until(lambda: not tracker.sender._thread.is_alive())
    assert (tmp_path / "run/tracking.json").read_text() == sent and elsewhere in sent
    assert tracking.push(tmp_path) == []


def test_a_run_whose_end_cannot_be_written_sends_no_more(store, tmp_path, monkeypatch):
    monkeypatch.setattr("nsa_lab.tracking.sender.INTERVAL_S", 0.05)
    tracker = Tracker.open(config_in(store), tmp_path)
    with monkeypatch.context() as full:
        full.setattr("nsa_lab.tracking.record.write_json", full_disk)
        with pytest.raises(OSError, match="full"):
            tracker.finish()
    until(lambda: not tracker.sender._thread.is_alive())


def test_a_refused_password_ends_the_start_at_once_and_a_run_goes_on(store, tmp_path, monkeypatch):
    monkeypatch.setattr("nsa_lab.tracking.sender.INTERVAL_S", 0.05)
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import UNAUTHENTICATED

    config, tried = config_in(store), []

    def deny(*_):
        tried.append(1)
        raise MlflowException("who are you", error_code=UNAUTHENTICATED)

    with monkeypatch.context() as broken:
        broken.setattr(store_file, "_send_all", deny)
        with pytest.raises(NsaLabError, match="who are you"):
            Tracker.open(config, tmp_path / "refused")
        broken.setattr(store_file, "_get_or_create", deny)
        with pytest.raises(NsaLabError, match="refuses the user or the password"):
            tracking.prepare_store(config)
    assert len(tried) == 2
    tracker = Tracker.open(config, tmp_path / "run")
    with monkeypatch.context() as broken:
        broken.setattr(store_file, "_send_all", deny)
        tracker.metrics({"train/loss": 1.0}, 1)
        until(lambda: len(tried) > 3)
    tracker.finish()
    assert client_of(config).get_run(tracker.run_id).data.metrics == {"train/loss": 1.0}


def test_a_lost_answer_does_not_double_the_run(store, tmp_path, monkeypatch):
    config = config_in(store, **{"tracking.experiment": "lost-answer"})
    client = store_file._client(tracking.tracking_uri(config))
    create, lost = client.create_run, []

    def create_and_lose(*arguments):
        run = create(*arguments)
        if not lost:
            lost.append(run)
            raise OSError("database is locked")
        return run

    monkeypatch.setattr(client, "create_run", create_and_lose)
    tracker = Tracker.open(config, tmp_path)
    tracker.finish()
    assert lost and tracker.run_id == lost[0].info.run_id


def test_runs_survive_a_real_server_that_goes_away(tmp_path, monkeypatch):
    monkeypatch.setattr("nsa_lab.tracking.sender.INTERVAL_S", 0.1)
    monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", f"sqlite:///{tmp_path}/server.db")
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", str(tmp_path / "artifacts"))
    with serving(0) as port:
        config = config_in(tmp_path, **{"tracking.uri": f"http://127.0.0.1:{port}"})
        tracker = Tracker.open(config, tmp_path / "run")
        tracker.metrics({"train/loss": 2.0}, 1)
        until(lambda: not tracker.pending)
    tracker.metrics({"train/loss": 1.0}, 2)
    until(lambda: tracker.sender.outage)
    with serving(port):
        tracker.finish()
        run = client_of(config).get_run(tracker.run_id)
        history = client_of(config).get_metric_history(tracker.run_id, "train/loss")
    assert run.info.status == "FINISHED"
    assert [(metric.step, metric.value) for metric in history] == [(1, 2.0), (2, 1.0)]


@contextmanager
def serving(port):
    """MLflow's own server, in a thread; port 0 takes a free one."""
    from mlflow.server import app
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", port, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("said", ["word " * 100, "It failed. " + "Here is why, at length: " * 20, ""])
def test_a_long_reason_is_cut(store, tmp_path, said):
    def fail():
        raise OSError(said)

    with pytest.raises(Unreachable) as caught:
        store_file._guarded("http://somewhere", fail)
    reason = str(caught.value)
    assert 0 < len(reason) <= store_file.REASON_LENGTH and "why" not in reason


def test_what_the_system_said_is_whole(store):
    def fail():
        raise OSError("cannot open: [Errno 30] Read-only file system: '/data/mlflow.db'")

    with pytest.raises(Unreachable, match=r"^\[Errno 30\] Read-only file system$"):
        store_file._guarded("http://somewhere", fail)
