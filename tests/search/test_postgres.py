"""Sweeps on a PostgreSQL server that cuts connections, or goes away and comes back."""

import random
import time
from collections import Counter

import optuna
import pytest

from nsa_lab.redact import hide
from nsa_lab.search.rows import read_outcome
from nsa_lab.search.storage import load_study, open_storage
from nsa_servers import PASSWORD, MlflowServer, Postgres, postgres_programs
from nsa_sweeps import SPACE, assert_retried_once, launch, log, output_of, states, wait_for_lines

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        postgres_programs() is None, reason="no PostgreSQL: initdb is neither on PATH nor in /usr/lib/postgresql"
    ),
    pytest.mark.parametrize("workers", ["fork"], indirect=True),
]


@pytest.fixture
def server(monkeypatch):
    pytest.importorskip("psycopg")
    found = Postgres()
    found.start()
    monkeypatch.setenv("NSA_LAB_STORAGE", found.url)
    yield found
    found.remove()


def check(folder, server, processes, count):
    """As many trials as asked for, each trained once, none failed, and the password nowhere."""
    outputs = [output_of(process) for process in processes]
    assert [process.exitcode for process in processes] == [0] * len(processes), outputs
    study = load_study(open_storage(server.url), "space")
    rows = read_outcome(study).rows
    undrawn = [trial.number for trial in study.get_trials() if not trial.params]  # an answer that never came was one
    rows = [row for row in rows if row.state != "reused" and row.number not in undrawn]
    assert [row.state for row in rows] == ["complete"] * count, outputs
    assert states(study.get_trials())["COMPLETE"] >= count and states(study.get_trials())["FAIL"] == 0
    ends = [line.split()[1] for line in log(folder, "end")]
    assert len(ends) == len(set(ends)) == count == len(log(folder, "start"))
    check_secret(folder, outputs)


def check_secret(folder, outputs):
    files = [file for file in folder.glob("runs*/**/*") if file.is_file()]
    assert files and not [file for file in files if PASSWORD.encode() in file.read_bytes()]
    assert not [output for output in outputs if PASSWORD in output]


def test_cut_connections_lose_and_double_nothing(folder, server, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "0.3")
    process = launch(folder, 8, 2)
    wait_for_lines(folder, 1)
    dice, cuts = random.Random(0), 0
    while process.is_alive():
        time.sleep(dice.uniform(0, 0.5))
        cuts += server.cut()
    assert cuts >= 4, "the sweep hardly noticed"
    check(folder, server, [process], 8)


def test_a_server_restarted_in_the_middle_costs_time_alone(folder, server, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "0.5")
    process = launch(folder, 6, 2)
    wait_for_lines(folder, 3)
    server.stop()
    time.sleep(3)  # trainings end while it is away
    assert process.is_alive()
    server.start()
    check(folder, server, [process], 6)


def test_a_server_restarted_under_two_sweeps_costs_time_alone(folder, server, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "0.5")
    first = launch(folder, 4, 1, "output.dir=runs-b")
    wait_for_lines(folder, 1)  # a sweep that has not opened its study yet does not wait for a server
    processes = [first, launch(folder, 8, 2, "output.dir=runs-a")]
    while not list(folder.glob("runs-a/studies/space/trial-*")):
        time.sleep(0.05)
    for count in (4, 7):
        wait_for_lines(folder, count)
        server.stop()
        time.sleep(2)
        assert processes[1].is_alive() and not first.exitcode
        server.start()
    check(folder, server, processes, 12)
    homes = [{file.name for file in folder.glob(f"runs-{name}/studies/space/trial-*")} for name in "ab"]
    assert not homes[0] & homes[1] and all(homes), "each trained its own"


def test_a_killed_sweep_of_another_host_gives_its_trials_back_by_the_heartbeat(folder, server, monkeypatch):
    for name, seconds in (("storage.HEARTBEAT_S", 1), ("trial.HEARTBEAT_S", 1), ("storage.GRACE_S", 8)):
        monkeypatch.setattr(f"nsa_lab.search.{name}", seconds)
    monkeypatch.setenv("FAKE_SECONDS", "300")
    monkeypatch.setenv("FAKE_HOST", "there")
    there = launch(folder, 2, 2, "output.dir=runs-there")
    wait_for_lines(folder, 2)
    monkeypatch.delenv("FAKE_HOST")
    monkeypatch.setenv("FAKE_SECONDS", "14")  # longer than the grace, so that it is the beats that keep a trial
    here = launch(folder, 1, 1, "output.dir=runs-here")
    wait_for_lines(folder, 3)
    there.kill()
    outputs = [output_of(there), output_of(here)]
    assert here.exitcode == 0 and "trials of a sweep that is gone are queued again" in outputs[1], outputs
    study = load_study(open_storage(server.url), "space")
    assert states(study.get_trials()) == {"COMPLETE": 3, "FAIL": 2}
    assert_retried_once(study.get_trials(), same=())  # its folder was there
    assert len({line.split()[1] for line in log(folder, "end")}) == len(log(folder, "end")) == 3
    check_secret(folder, outputs)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("places", [("runs-here", "runs-there"), ("runs", "runs")], ids=["own folders", "one folder"])
def test_machines_that_join_a_study_share_its_total(folder, server, tmp_path, monkeypatch, places):
    """Two start at once; one dies, the database restarts: none is lost, none doubled."""
    places = dict(zip(("here", "there"), places, strict=True))
    for name, seconds in (("storage.HEARTBEAT_S", 1), ("trial.HEARTBEAT_S", 1), ("trial.LOOK_S", 0.5),
                          ("storage.GRACE_S", 10), ("shared.GRACE_S", 10)):  # fmt: skip
        monkeypatch.setattr(f"nsa_lab.search.{name}", seconds)
    (folder / "space.py").write_text(SPACE.replace("REFERENCES = {}\n", 'START = {"training.steps": 9}\n'))
    monkeypatch.setenv("FAKE_SECONDS", "6")
    monkeypatch.setenv("FAKE_TRACK", "1")
    mlflow = MlflowServer(tmp_path)
    mlflow.start()

    def join(host):
        monkeypatch.setenv("FAKE_HOST", host)
        settings = (f"output.dir={places[host]}", "tracking.enabled=true", f"tracking.uri={mlflow.uri}")
        return launch(folder, None, 2, *settings, total=8)

    def ended(process):
        output = output_of(process)
        assert process.exitcode == 0 and "study space: 8 complete" in output, output
        return output

    try:
        here, there = join("here"), join("there")
        while not in_training(server, "there"):
            assert there.is_alive(), output_of(there)
            time.sleep(0.1)
        there.kill()
        time.sleep(1)
        server.stop()
        time.sleep(2)
        server.start()
        outputs = [ended(here)]
        assert "trials of a sweep that is gone are queued again" in outputs[0]
        before = log(folder, "start")
        outputs.append(ended(join("there")))
        assert log(folder, "start") == before, "started again, the command adds none"
        study = load_study(open_storage(server.url), "space")
        rows = read_outcome(study).rows
        counts = Counter(row.state for row in rows if not row.reference)
        assert counts["complete"] == 8 and counts.keys() <= {"complete", "killed", "reused"} and counts["killed"], rows
        ends = Counter(line.split()[1] for line in log(folder, "end"))
        trained = {row.name for row in rows if row.state == "complete"}
        assert ends == Counter(trained) + Counter(start=len({*places.values()})), "a start in each folder"
        assert "dense" in trained
        tables = [(folder / place / "studies/space/table.csv").read_text() for place in places.values()]
        assert tables[0] == tables[1], "each ends with the whole study"
        check_runs(mlflow.uri, trained)
        check_secret(folder, outputs)
    finally:
        mlflow.kill()


def in_training(server, host):
    """How many trials a machine trains."""
    storage = open_storage(server.url)
    if "space" not in optuna.get_all_study_names(storage):
        return 0
    running = load_study(storage, "space").get_trials(states=[optuna.trial.TrialState.RUNNING])
    return sum(trial.user_attrs["owner"]["host"] == host and bool(trial.params) for trial in running)


def check_runs(uri, trained):
    """One run of the study, with its report among its artifacts, and below it one that finished for each `trained`."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("nsa-lab").experiment_id])
    (parent,) = (run for run in runs if run.data.tags["kind"] == "sweep")
    assert {"table.csv", "pareto.html", "best.yaml"} <= {
        file.path for file in client.list_artifacts(parent.info.run_id)
    }
    below = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in below} == {parent.info.run_id}
    kinds = {name: "reference" if name == "dense" else "trial" for name in trained}
    finished = Counter(
        (run.data.tags["kind"], run.data.tags["mlflow.runName"].split()[0].removeprefix("space-"))
        for run in below
        if run.info.status == "FINISHED" and run.data.tags["kind"] != "start"
    )
    assert finished == Counter((kind, name) for name, kind in kinds.items())


def test_an_outage_longer_than_the_patience_ends_in_one_line_and_the_next_call_goes_on(folder, server, monkeypatch):
    monkeypatch.setattr("nsa_lab.search.storage.PATIENCE_S", 4.0)
    monkeypatch.setenv("FAKE_SECONDS", "1")
    processes = [launch(folder, 4, 2, "output.dir=runs-a"), launch(folder, 4, 1, "output.dir=runs-b")]
    wait_for_lines(folder, 5)
    server.stop()
    stopped = time.monotonic()
    outputs = [output_of(process) for process in processes]
    took = time.monotonic() - stopped
    server.start()
    for process, output in zip(processes, outputs, strict=True):
        said = [line for line in output.splitlines() if line.startswith("error:")]
        assert process.exitcode == 2 and len(said) == 1 and "Traceback" not in output, output
        assert said[0].startswith(f"error: storage {hide(server.url)}: "), said
        assert said[0].endswith("what was trained is kept, and the same command goes on"), said
    assert took < 4 + 10, "the patience is waited for once"
    monkeypatch.setenv("FAKE_SECONDS", "0")
    for name in "ab":
        again = launch(folder, 0, 2, f"output.dir=runs-{name}")
        outputs.append(output_of(again))
        assert again.exitcode == 0, outputs[-1]
    study = load_study(open_storage(server.url), "space")
    rows = read_outcome(study).rows
    assert {row.state for row in rows} <= {"complete", "killed", "reused"}, "none is left in flight, none failed"
    complete = [row for row in rows if row.state == "complete"]
    assert len(complete) == len({str(row.params) for row in complete})
    assert {int(line.split()[1][-4:]) for line in log(folder, "start")} == {row.number for row in complete}
    check_secret(folder, outputs)
