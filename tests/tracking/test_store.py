"""Where runs are kept: which stores there are, what they take, and several processes that open one."""

import json
import multiprocessing
from pathlib import Path
from threading import current_thread, main_thread

import pytest

from nsa_lab import tracking
from nsa_lab.errors import NsaLabError
from nsa_lab.tracking import Tracker
from nsa_lab.tracking import store as store_file
from nsa_tracking import client_of, config_in


def test_runs_are_kept_in_sqlite_unless_said_otherwise(tmp_path):
    # MLflow refuses its old default, a folder of files.
    assert tracking.tracking_uri(config_in(tmp_path)) == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert tracking.tracking_uri(config_in(tmp_path, **{"tracking.uri": "http://there"})) == "http://there"


def test_a_database_gets_the_output_folder_for_artifacts(tmp_path, monkeypatch):
    created = []

    def get_or_create(client, name, place):
        if current_thread() is main_thread():  # a record of an earlier test may still be sending
            created.append(place)
        return "1"

    monkeypatch.setattr(store_file, "_client", lambda uri: uri)
    monkeypatch.setattr(store_file, "_get_or_create", get_or_create)
    for uri in ("postgresql://there/db", "http://there"):
        tracking.prepare_store(config_in(tmp_path, **{"tracking.uri": uri}))
    assert created == [(tmp_path / "mlartifacts").as_uri(), None]


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


@pytest.mark.usefixtures("workers")
@pytest.mark.parametrize("count", [2, pytest.param(6, marks=pytest.mark.slow)])
def test_processes_open_a_fresh_store_at_once(tmp_path, count):
    with multiprocessing.get_context("spawn").Pool(count) as pool:
        ids = pool.map(record_once, [(str(tmp_path), index) for index in range(count)])
    config = config_in(tmp_path)
    assert len(set(ids)) == count
    assert all(client_of(config).get_run(run_id).data.metrics == {"train/loss": 1.0} for run_id in ids)


def record_once(where):
    folder, index = where

    tracker = Tracker.open(config_in(folder), Path(folder) / f"run-{index}")
    tracker.metrics({"train/loss": 1.0}, 1)
    tracker.finish()
    return tracker.run_id


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
