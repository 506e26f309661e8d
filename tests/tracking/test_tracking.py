"""The record of a run: on disk, in MLflow, through resumes, races and outages."""

import json
import math
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, nullcontext

import pytest

from nsa_lab import origin, redact, tracking
from nsa_lab.config import load_config
from nsa_lab.errors import NsaLabError
from nsa_lab.tracking import Tracker
from nsa_lab.tracking import store as store_file
from nsa_lab.tracking import tracker as tracker_file
from nsa_lab.tracking.page import runs_link
from nsa_lab.tracking.record import Record
from nsa_lab.tracking.store import Unreachable
from nsa_lab.tracking.ui import _own_group


def config_in(folder, **overrides):
    return load_config(
        None, {"name": "needle-nsa", "tasks.needle.enabled": True, "output.dir": str(folder), **overrides}
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """An output folder whose tracking database exists."""
    folder = tmp_path_factory.mktemp("runs")
    tracking.prepare_store(config_in(folder))
    return folder


def client_of(config):
    from mlflow import MlflowClient

    return MlflowClient(tracking.tracking_uri(config))


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
    wanted = {"state": "finished", "study": "s1", "partition": "uniform", "model": "nano", "tasks": "needle"}
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


def test_two_processes_cannot_record_in_one_directory(store, tmp_path, monkeypatch):
    monkeypatch.setattr("nsa_lab.tracking.record.LOCK_PATIENCE_S", 0.0)
    tracker = Tracker.open(config_in(store), tmp_path)
    with pytest.raises(NsaLabError, match="another process records a run"):
        Tracker.open(config_in(store), tmp_path)
    tracker.finish()


def test_without_tracking_the_record_can_be_pushed_later(store, tmp_path):
    tracker = Tracker.open(config_in(store, **{"tracking.enabled": False}), tmp_path / "run")
    tracker.metrics({"val/accuracy": 0.5}, 3)
    tracker.finish()
    assert tracker.run_id is None
    with pytest.raises(NsaLabError, match="recorded without tracking; name a server with --uri"):
        tracking.push(tmp_path)
    uri = tracking.tracking_uri(config_in(store))
    assert tracking.push(tmp_path, uri) == [tmp_path / "run"]
    assert tracking.push(tmp_path) == [], "nothing is sent twice"
    run = client_of(config_in(store)).get_run(tracking.last_run_id(tmp_path / "run"))
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"val/accuracy": 0.5})
    with pytest.raises(NsaLabError, match="holds no record"):
        tracking.push(tmp_path / "nothing")
    for name, enabled in (("a", False), ("b", True)):
        with Tracker.open(config_in(store, **{"tracking.enabled": enabled}), tmp_path / name, parent="x") as tracker:
            tracker.sender = None  # nothing is sent yet
    assert tracking.push(tmp_path) == [tmp_path / "b"], "one that was recorded without tracking is passed over"


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
    assert tracking.push(tmp_path) == [tmp_path / "alone", tmp_path / "trial"]
    child = client_of(config).get_run(tracking.last_run_id(tmp_path / "trial"))
    assert child.data.metrics == {"train/loss": 1.0} and child.info.status == "FINISHED"
    assert child.data.tags["mlflow.parentRunId"] == trackers[0].run_id


def test_a_sweep_that_moves_to_another_store_keeps_its_links(store, tmp_path):
    config, other = config_in(store), tracking.tracking_uri(config_in(tmp_path / "other"))
    parent = Tracker.open(config, tmp_path / "study" / "z-parent")
    Tracker.open(config, tmp_path / "study" / "child", parent=parent.run_id).finish()
    parent.finish()
    assert len(tracking.push(tmp_path / "study", other)) == 2
    moved = tracking.last_run_id(tmp_path / "study" / "z-parent")
    child = client_of(config_in(tmp_path / "other")).get_run(tracking.last_run_id(tmp_path / "study" / "child"))
    assert child.data.tags["mlflow.parentRunId"] == moved != parent.run_id


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


def test_a_database_gets_the_output_folder_for_artifacts(tmp_path, monkeypatch):
    created = []
    monkeypatch.setattr(store_file, "_client", lambda uri: uri)
    monkeypatch.setattr(store_file, "_get_or_create", lambda client, name, place: created.append(place) or "1")
    for uri in ("postgresql://there/db", "http://there"):
        tracking.prepare_store(config_in(tmp_path, **{"tracking.uri": uri}))
    assert created == [(tmp_path / "mlartifacts").as_uri(), None]


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


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://127.0.0.1:9", r"does not answer \(\[Errno 111\] Connection refused\)"),
        ("ftp://somewhere", "is no tracking store; use one of sqlite"),
        ("postgresql+psycopg9://me:secret@there/db", r"me:\*\*\*@there/db needs a database driver"),
        ("file:./mlruns", "is no tracking store; use one of sqlite"),
        ("sqlite:////proc/nowhere/mlflow.db", "refused.*No such file"),
        ("sqlite:///{folder}/damaged.db", "refused.*not a database"),
    ],
)
def test_unusable_stores_are_named(tmp_path, uri, message):
    (tmp_path / "damaged.db").write_bytes(b"no database at all " * 100)
    config = config_in(tmp_path, **{"tracking.uri": uri.format(folder=tmp_path)})
    with pytest.raises(NsaLabError, match=message) as caught:
        tracking.prepare_store(config)
    assert "\n" not in str(caught.value)


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


@pytest.mark.parametrize(
    ("uri", "hidden"),
    [
        ("postgresql://me:se/c@ret@there:5432/db", "postgresql://me:***@there:5432/db"),
        ("https://me:secret@there", "https://me:***@there"),
        (
            "mysql+pymysql://there/db?user=me&password=secret&ssl=1",
            "mysql+pymysql://there/db?user=me&password=***&ssl=1",
        ),
        ("http://there:5000/a@b", "http://there:5000/a@b"),
        ("postgresql://me@there/db", "postgresql://me@there/db"),
        ("sqlite:////tmp/mlflow.db", "sqlite:////tmp/mlflow.db"),
    ],
)
def test_passwords_are_hidden(monkeypatch, uri, hidden):
    monkeypatch.setattr(redact, "_known", {})
    monkeypatch.setenv(redact.SOURCE, "")
    assert redact.keep(uri) == hidden == redact.hide(hidden) and redact.reveal(hidden) == uri
    redact._known.clear()
    assert redact.reveal(hidden) == uri, "a process that it starts has it too"
    monkeypatch.setenv(redact.SOURCE, "http://elsewhere")
    assert redact.reveal(hidden) == (uri if hidden == uri else None)
    assert str(NsaLabError(f"{uri} is away")) == f"{hidden} is away"


SECRET = "http://me:hunter2@127.0.0.1:9"


def test_a_password_reaches_no_file_and_no_error(tmp_path, monkeypatch):
    """The server is away, so that the run stays in its files; then the password is given by the environment."""
    monkeypatch.setattr(redact, "_known", {})
    monkeypatch.setenv(redact.SOURCE, "")
    monkeypatch.setattr(tracker_file, "TRIAL_FINISH_PATIENCE_S", 0.0)
    monkeypatch.setattr("nsa_lab.tracking.sender.START_PATIENCE_S", 0.0)
    monkeypatch.setattr(origin, "source_state", lambda: origin.Source("abc", f"+  uri: {SECRET}\n"))
    config = config_in(tmp_path, **{"tracking.uri": SECRET})
    Tracker.open(config, tmp_path / "run", parent="p").finish()
    assert "http://me:***@127.0.0.1:9" in (tmp_path / "run/tracking.json").read_text()
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and b"hunter2" in file.read_bytes()]
    for given, message in (("", "give the whole URI in MLFLOW_TRACKING_URI"), (SECRET, "Connection refused")):
        store_file._client.cache_clear()
        redact._known.clear()
        monkeypatch.setenv(redact.SOURCE, given)
        with pytest.raises(NsaLabError, match=message) as caught:
            tracking.push(tmp_path)
        assert "hunter2" not in str(caught.value)


def test_runs_are_kept_in_sqlite_unless_said_otherwise(tmp_path):
    # MLflow refuses its old default, a folder of files.
    assert tracking.tracking_uri(config_in(tmp_path)) == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert tracking.tracking_uri(config_in(tmp_path, **{"tracking.uri": "http://there"})) == "http://there"


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize("count", [2, pytest.param(6, marks=pytest.mark.slow)])
def test_processes_open_a_fresh_store_at_once(tmp_path, count):
    with multiprocessing.get_context("spawn").Pool(count) as pool:
        ids = pool.map(record_once, [(str(tmp_path), index) for index in range(count)])
    config = config_in(tmp_path)
    assert len(set(ids)) == count
    assert all(client_of(config).get_run(run_id).data.metrics == {"train/loss": 1.0} for run_id in ids)


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


def test_page_refuses_what_it_cannot_serve(tmp_path):
    with pytest.raises(NsaLabError, match="page of its own"):
        tracking.serve_ui(config_in(tmp_path, **{"tracking.uri": "http://somewhere:5000"}))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(NsaLabError, match="is taken"):
            tracking.serve_ui(config_in(tmp_path), taken.getsockname()[1])
    for port in (0, 70000):
        with pytest.raises(NsaLabError, match=rf"--port {port} is no port; choose one from 1 to 65535"):
            tracking.serve_ui(config_in(tmp_path), port)


def test_the_page_shows_the_columns_that_tell_runs_apart(store):
    config = config_in(store, **{"tracking.experiment": "columns"})
    number = tracking.prepare_store(config)
    tags = client_of(config).get_experiment(number).tags
    link = runs_link("127.0.0.1", 5000, number)
    assert f"/#/experiments/{number}/runs?workflowType=machine_learning&" in link
    view = json.loads(tags[f"mlflow.sharedViewState.{link.partition('viewStateShareKey=')[2]}"])
    shown = ["metrics.`val/accuracy/needle`", "metrics.`budget/keys_per_query`", "tags.`branches`", "tags.`study`"]
    assert {*shown, "params.`attention.partition.block_size`", "tags.`seed`"} <= set(view["selectedColumns"])
    assert "a parent run for each sweep" in tags["mlflow.note.content"]
    client_of(config).set_experiment_tag(number, "mlflow.note.content", "ours")
    client_of(config).delete_experiment_tag(number, "mlflow.experimentKind")
    assert tracking.prepare_store(config) == number
    tags = client_of(config).get_experiment(number).tags
    assert (tags["mlflow.note.content"], tags["mlflow.experimentKind"]) == ("ours", "custom_model_development")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_page_leaves_no_process_behind(tmp_path, monkeypatch, number):
    monkeypatch.setattr("nsa_lab.tracking.ui.PATIENCE_S", 0.2)
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(99)"
    )
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {stubborn!r}]).wait()"
    with pytest.raises(KeyboardInterrupt), _own_group([sys.executable, "-c", code], stdout=subprocess.PIPE) as server:
        assert server.stdout.readline() == b"up\n"
        os.kill(os.getpid(), number)
        time.sleep(9)
    assert server.stdout.read() == b"", "who holds the other end is gone"


def test_importing_tracking_does_not_import_mlflow():
    code = "import sys, nsa_lab.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def full_disk(*_):
    raise OSError("full")


def unreachable(*_):
    raise Unreachable("no route")


def record_once(where):
    folder, index = where
    from pathlib import Path

    tracker = Tracker.open(config_in(folder), Path(folder) / f"run-{index}")
    tracker.metrics({"train/loss": 1.0}, 1)
    tracker.finish()
    return tracker.run_id


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


def until(condition, timeout=90):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


NAMES = [
    "acc@1",
    "a//b",
    "/a",
    "../a",
    "..",
    ".",
    "a/./b",
    "",
    "zwei\nZeilen",
    "x" * 400,
    "ünïcode",
    "%",
    "a:b",
    "\ud800",
    "a\0b",
]


def test_names_and_values_of_any_text_reach_mlflow(store, tmp_path, caplog):
    """A row's `data_source` may be anything; metrics of two names stay two metrics."""
    config = config_in(store)
    names = [f"val/accuracy/{name}" for name in NAMES] + NAMES
    with Tracker.open(config, tmp_path / "run", tags=dict.fromkeys(names, "t" * 9000)) as tracker:
        tracker.params(dict.fromkeys(names, "p" * 7000))
        tracker.metrics({name: place for place, name in enumerate(names)}, 1)
    run = client_of(config).get_run(tracker.run_id)
    assert sorted(run.data.metrics.values()) == list(range(len(names))), "each under a name of its own"
    assert {len(value) for value in run.data.params.values() if value.startswith("p")} == {6000}
    assert {len(value) for value in run.data.tags.values() if value.startswith("t")} >= {8000}
    assert run.data.metrics["val/accuracy/ünïcode"] == NAMES.index("ünïcode"), "what is fine stays as it is"
    kept = json.loads((tmp_path / "run/metrics.jsonl").read_text())["metrics"]
    assert kept["val/accuracy/acc@1"] == 0 and not [
        record for record in caplog.records if record.name.startswith("nsa_lab")
    ]


def test_what_mlflow_refuses_is_said_and_the_rest_arrives(store, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(store_file, "safe_name", lambda name: name)
    config = config_in(store)
    with Tracker.open(config, tmp_path / "run") as tracker:
        tracker.metrics({"a": 1, "acc@1": 2, "b": 3}, 1)
    run = client_of(config).get_run(tracker.run_id)
    assert run.info.status == "FINISHED" and run.data.metrics == {"a": 1, "b": 3}
    assert "tracking refuses metric acc@1" in caplog.text and str(tmp_path / "run") in caplog.text
