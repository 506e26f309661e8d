"""Whole sweeps on a stand-in runner: counts, infeasible designs, faults, resume, kills."""

import errno
import io
import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import optuna
import psutil
import pytest
from rich.console import Console

from nsa_lab.config import load_config
from nsa_lab.errors import NsaLabError
from nsa_lab.search import show, sweep
from nsa_lab.search.rows import read_outcome
from nsa_lab.search.storage import load_study, open_storage
from nsa_sweeps import SPACE, assert_retried_once, launch, log, output_of, states, wait_for_lines

RUNNER = "fake_runner:run"


def run(file="space.py", **options):
    console = Console(width=160, record=True, file=io.StringIO())
    result = sweep(file, runner=RUNNER, console=console, **options)
    return result, console.export_text()


def trials_of(name="space", url="sqlite:///runs/studies.db"):
    return optuna.load_study(study_name=name, storage=url).get_trials()


def test_pareto_set_and_files(folder, pictures):
    result, text = run(trials=6, workers=2)
    trials = trials_of()
    assert states(trials) == {"COMPLETE": 6}
    assert sorted(trial.number for trial in trials) == list(range(6))
    front = {row.number for row in result.outcome.front}
    for trial in trials:
        beaten = any(
            o.values[0] >= trial.values[0] and o.values[1] <= trial.values[1] and o.values != trial.values
            for o in trials
        )
        assert beaten != (trial.number in front)
    best = result.outcome.best
    assert best.number in front
    config = load_config(result.directory / "best.yaml")
    assert config.attention.branches.window.size == best.params["window"]
    assert config.attention.partition.block_size == best.params["block"]
    assert {int(f.stem[-4:]) for f in (result.directory / "pareto").glob("*.yaml")} == front
    assert "nearest to highest val/accuracy and lowest budget/keys_per_query" in " ".join(text.split())
    assert "highest val/accuracy" in (result.directory / "best.yaml").read_text()
    assert "cdn.plot" not in (result.directory / "pareto.html").read_text()[:20000]
    assert (result.directory / "pareto.png").stat().st_size > 10_000
    assert trials[0].user_attrs["worker"]["pid"] != os.getpid()
    assert trials[0].user_attrs["metrics"]["train/loss"] == 0.1

    again, _ = run(trials=2)
    assert states(trials_of()) == {"COMPLETE": 8}
    assert len({(t.params["block"], t.params["window"]) for t in trials_of()}) == 8, "a resumed search repeats itself"
    assert show("space", console=Console(file=io.StringIO())).outcome.best == again.outcome.best
    with pytest.raises(NsaLabError, match="did you mean 'space'"):
        show("spice")
    with pytest.raises(NsaLabError, match=r"training\.steps=300 then, 7 now.*--study NEWNAME"):
        run(trials=1, overrides=["training.steps=7"])
    (folder / "space.py").write_text(SPACE.replace("[8, 16, 32]", "[8, 16]"))
    with pytest.raises(NsaLabError, match=r"search space of this study changed.*--study NEWNAME"):
        run(trials=1)
    assert states(trials_of()) == {"COMPLETE": 8}


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["spawn"], indirect=True)  # a fork would share the open store
def test_infeasible_designs_are_constraints_and_all_trials_are_tracked(folder, monkeypatch):
    monkeypatch.setenv("FAKE_TRACK", "1")
    extra = '\ndef constraints(config):\n    return {"window": config.attention.branches.window.size - 60}\n'
    few = SPACE.replace("8, 100000", "-20, 100").replace('"random"', '"tpe"') + extra
    (folder / "space.py").write_text(few)
    run(trials=6, storage=f"journal://{folder}/journal.log", overrides=["tracking.enabled=true"])
    backend = optuna.storages.journal.JournalFileBackend(f"{folder}/journal.log")
    trials = trials_of(url=optuna.storages.JournalStorage(backend))
    for trial in trials:
        size = trial.params["window"]
        if size < 1:
            assert trial.state.name == "PRUNED" and trial.constraints == {"config": 1.0}
            assert "holds no token" in trial.user_attrs["reason"]
        else:
            assert trial.constraints == {"config": 0.0, "window": size - 60}
            assert trial.state.name == ("PRUNED" if size > 60 else "COMPLETE")
    trained = [line for line in (folder / "log").read_text().splitlines() if line.startswith("end")]
    fresh = [trial for trial in trials if "reused" not in trial.user_attrs]
    assert len(trained) == states(fresh)["COMPLETE"] == 6 < len(fresh), "infeasible ones use up no trial"
    check_tracked(folder, fresh)


@pytest.mark.slow
def test_one_objective_prunes_and_brute_force_ends(folder):
    (folder / "prune.py").write_text(
        'BASE = "base.yaml"\nOBJECTIVES = {"val/accuracy": "maximize"}\nPRUNER = "median"\nSAMPLER = "brute"\n'
        "REFERENCES = {}\n"
        "def suggest(trial):\n"
        '    return {"attention.branches.window.size": trial.suggest_int("window", 2, 20, step=2)}\n'
    )
    result, text = run("prune.py", trials=50)
    trials = trials_of("prune")
    assert len(trials) == 10 and "every design of the space has been tried" in text
    assert sorted(trial.params["window"] for trial in trials) == list(range(2, 21, 2))
    assert states(trials)["PRUNED"] >= 1 and result.outcome.best.params["window"] == 20
    assert result.outcome.count("pruned") == states(trials)["PRUNED"]
    assert all("pruned by median" in t.user_attrs["reason"] for t in trials if t.state.name == "PRUNED")


def test_a_design_is_trained_once_and_reused_after(folder, monkeypatch):
    few = SPACE.replace("[8, 16, 32]", "[8, 16]").replace('"window", 8, 100000', '"window", 8, 10')
    (folder / "few.py").write_text(few)
    result, text = run("few.py", trials=5)
    trained = [line.rsplit(" ", 1)[0].split(" ", 2)[2] for line in log(folder, "end")]
    assert len(trained) == len(set(trained)) == 5, "as many as asked, each another design"
    reused = [row for row in result.outcome.rows if row.state == "reused"]
    assert reused and not set(map(id, reused)) & set(map(id, result.outcome.front))
    for row in reused:
        (twin,) = (r for r in result.outcome.rows if r.state == "complete" and r.params == row.params)
        assert row.reason == f"the design of trial {twin.number}" and row.values == twin.values
        assert row.directory == twin.directory
    assert f"trial-{reused[0].number:04d} reused" in text and f"5 complete, {len(reused)} reused" in text

    monkeypatch.setattr("nsa_lab.search.trial.BARREN", 12)
    run("few.py", trials=50)
    assert len(log(folder, "end")) == 6, "the space holds six designs; a search of it comes to an end"


@pytest.mark.slow
def test_dense_attention_stands_beside_the_trials(folder):
    (folder / "dense.py").write_text(SPACE.replace("REFERENCES = {}\n", ""))
    result, text = run("dense.py", trials=2)
    assert [line.split()[1] for line in log(folder, "end")] == ["dense", "trial-0000", "trial-0001"]
    assert states(trials_of("dense")) == {"COMPLETE": 2}, (
        "it is none of Optuna's trials, which its values would mislead"
    )
    (row,) = (row for row in result.outcome.rows if row.reference)
    assert (row.label, row.state, row.overrides) == ("dense", "complete", {"attention.method": "dense"})
    assert "3/3" in text and "dense" in (result.directory / "table.csv").read_text()
    run("dense.py", trials=1)
    assert len(log(folder, "end")) == 4, "it is trained once"
    (folder / "dense.py").write_text(SPACE.replace("{}", '{"wide": {"attention.branches.window.size": 4096}}', 1))
    with pytest.raises(NsaLabError, match=r"search space of this study changed \(references: dense="):
        run("dense.py", trials=1)


@pytest.mark.slow
def test_every_design_starts_from_the_run_of_start(folder):
    (folder / "from.py").write_text(SPACE + 'START = {"training.steps": 9}\n')
    result, text = run("from.py", trials=1, seeds=2)
    order = [line.split()[1] for line in log(folder, "start")]
    assert order == ["seed-0", "seed-1"] * 2, "first the two runs of START, then a design from each"
    assert "starting runs" not in text.splitlines()[-1] and text.count("what every design starts from") == 2
    asked = {
        str(f.parent.relative_to(result.directory)): json.loads(f.read_text())
        for f in result.directory.rglob("asked.json")
    }
    steps = load_config("base.yaml").training.steps
    for seed in ("seed-0", "seed-1"):
        assert asked[f"start/{seed}"] == [None, 9]
        assert asked[f"trial-0000/{seed}"] == [f"runs/studies/from/start/{seed}", steps]
    run("from.py", trials=1, seeds=2)
    assert len(log(folder, "start")) == 6, "it is trained once"
    (folder / "from.py").write_text(SPACE + 'START = {"training.steps": 8}\n')
    with pytest.raises(NsaLabError, match=r"start: training.steps=9 then, 8 now"):
        run("from.py", trials=1, seeds=2)


def test_without_a_start_no_design_is_trained(folder, monkeypatch):
    (folder / "from.py").write_text(SPACE + 'START = {"training.steps": 9}\n')
    monkeypatch.setenv("FAKE_FAULT", "no clips")
    with pytest.raises(NsaLabError, match=r"runs/studies/from/start, which every design starts from, failed: no clips"):
        run("from.py", trials=2)
    assert not trials_of("from")
    (folder / "from.py").write_text(SPACE + 'START = {"attention.method": "dens"}\n')
    with pytest.raises(NsaLabError, match=r"dens"):
        run("from.py", trials=2, study="other")


@pytest.mark.slow
def test_objectives_are_means_over_seeds(folder):
    result, text = run(trials=2, workers=2, seeds=3)
    names = [f"trial-{number:04d}/seed-{seed}" for number in (0, 1) for seed in (0, 1, 2)]
    assert (
        sorted(str(Path(d).relative_to(result.directory)) for d in result.directory.glob("*/seed-*"))
        == [str(name) for name in names]
        or len(log(folder, "end")) == 6
    )
    for trial in trials_of():
        assert trial.user_attrs["half"]["val/accuracy"] > 0
        assert trial.user_attrs["metrics"]["train/loss"] == pytest.approx(0.1)
    assert "±" in text
    with pytest.raises(NsaLabError, match=r"trains each design with --seeds 3, not 1; use the same, or start"):
        run(trials=1)


@pytest.mark.slow
def test_checkpoints_stay_on_the_front_alone(folder, monkeypatch):
    monkeypatch.setenv("FAKE_CHECKPOINT", "1")
    result, _ = run(trials=5)
    kept = {row.number for row in result.outcome.rows if list(Path(row.directory).glob("checkpoints/*"))}
    assert kept == {row.number for row in result.outcome.front} and len(kept) < 5
    run(trials=1, keep_checkpoints="all")


@pytest.mark.slow
def test_a_full_disk_queues_its_trial_again(folder, monkeypatch):
    monkeypatch.setenv("FAKE_FAULT", "full")
    with pytest.raises(NsaLabError, match=r"trial-0000: .*No space left on device; it comes first when the same"):
        run(trials=3)
    assert states(trials_of()) == {"FAIL": 1, "WAITING": 1}
    monkeypatch.delenv("FAKE_FAULT")
    result, _ = run(trials=0)
    assert [(row.number, row.state) for row in result.outcome.rows] == [(0, "killed"), (0, "complete")]


def test_a_password_in_the_sweep_file_is_not_recorded(folder):
    (folder / "secret.py").write_text(SPACE + 'AT = "postgresql://me:hunter2@there/db"\n')
    run("secret.py", trials=1)
    copies = [f.read_text() for f in (folder / "runs").rglob("secret.py")]
    assert len(copies) == 1 and "me:***@there" in copies[0]
    recorded = json.loads((folder / "runs/studies/secret/tracking.json").read_text())["artifacts"]
    assert ["asked/secret.py", ""] in recorded


@pytest.mark.slow
def test_another_question_is_not_mixed_into_a_study(folder):
    run(trials=1)
    for change, reason in (
        (('"window", 8', '"width", 8'), r"parameters gone: window; new: width"),
        (("window}", 'window, "attention.gate.kind": "linear"}'), "constants: attention.gate.kind=None then, linear"),
    ):
        (folder / "space.py").write_text(SPACE.replace(*change))
        with pytest.raises(NsaLabError, match=reason):
            run(trials=1)


@pytest.mark.slow
def test_two_objectives_are_never_pruned_and_that_is_said(folder):
    # Optuna refuses to report or prune a trial with several objectives.
    (folder / "two.py").write_text(SPACE + 'PRUNER = "median"\n')
    _, text = run("two.py", trials=3)
    assert "PRUNER median is ignored: pruning needs one objective and one seed (objectives: 2, seeds: 1)" in text
    assert states(trials_of("two")) == {"COMPLETE": 3}


def test_faults_stop_a_sweep_with_their_reason(folder, monkeypatch, capfd):
    monkeypatch.setenv("FAKE_FAULT", "memory")
    with capfd.disabled(), pytest.raises(NsaLabError, match=r"3 trials in a row failed.*RuntimeError: out of memory"):
        run(trials=9)
    assert states(trials_of()) == {"FAIL": 3}
    assert "out of memory" in (folder / "runs/studies/space/logs/worker-0.log").read_text()
    monkeypatch.setenv("FAKE_FAULT", "the disk is full")
    with pytest.raises(NsaLabError, match="no trial completed; 2 of 2 failed: the disk is full"):
        run(trials=2, study="other")
    monkeypatch.delenv("FAKE_FAULT")
    (folder / "wrong.py").write_text(SPACE.replace("val/accuracy", "val/acuracy"))
    with pytest.raises(NsaLabError, match="objective 'val/acuracy' was not reported; a run reports budget/keys"):
        run("wrong.py", trials=9)
    assert states(trials_of("wrong")) == {"FAIL": 1}


@pytest.mark.slow
def test_a_full_disk_ends_in_one_line_and_loses_nothing(folder, monkeypatch):
    def full(outcome, file):
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    with monkeypatch.context() as disk:
        disk.setattr("nsa_lab.search.report.write_csv", full)
        with pytest.raises(NsaLabError, match=r"^cannot write .*table\.csv: No space left on device; what was trai"):
            run(trials=1)
    assert json.loads(Path("runs/studies/space/tracking.json").read_text())["status"] == "FAILED"
    assert show("space", console=Console(file=io.StringIO())).outcome.count("complete") == 1


def test_killed_worker_is_replaced_and_its_trial_retried(folder, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "1")
    process = launch(folder, 4, 2)
    victim = int(wait_for_lines(folder, 2)[0].split()[-1])
    os.kill(victim, signal.SIGKILL)
    output = output_of(process)
    assert process.exitcode == 0, output
    trials = trials_of()
    assert states(trials) == {"COMPLETE": 4, "FAIL": 1}
    assert_retried_once(trials)
    assert "killed by SIGKILL (out of memory?); queued again" in output
    assert "killed by SIGKILL" in next(t for t in trials if t.state.name == "FAIL").user_attrs["reason"]


def test_killed_sweep_resumes_without_a_lost_or_doubled_trial(folder, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "1")
    process = launch(folder, 9, 2)
    lines = wait_for_lines(folder, 4)
    process.kill()
    output_of(process)
    workers = {int(line.split()[-1]) for line in lines}
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "workers outlive their sweep"
        time.sleep(0.1)
    before = states(trials_of())
    assert before["RUNNING"] >= 1
    monkeypatch.setenv("FAKE_SECONDS", "0")
    _, text = run(trials=2)
    trials = trials_of()
    assert states(trials)["COMPLETE"] == before["COMPLETE"] + before["RUNNING"] + 2
    assert states(trials)["FAIL"] == before["RUNNING"] and states(trials)["RUNNING"] == 0
    assert_retried_once(trials)
    assert f"{before['RUNNING']} unfinished trials of an earlier sweep are retried first" in text


@pytest.mark.slow
def test_interrupt_queues_trials_in_flight_again(folder, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "20")
    process = launch(folder, 5, 2, "name=my base")
    wait_for_lines(folder, 2)
    os.kill(process.pid, signal.SIGINT)
    output = output_of(process)
    again = "nsa-lab sweep space.py 'name=my base' --study space --trials 3 --workers 2"
    assert process.exitcode == 130 and output.splitlines()[-1].endswith(again), output
    assert states(trials_of()) == {"FAIL": 2, "WAITING": 2}
    monkeypatch.setenv("FAKE_SECONDS", "0")
    run(trials=0, workers=2, overrides=["name=my base"])
    assert states(trials_of()) == {"FAIL": 2, "COMPLETE": 2}, "the unfinished ones alone"
    assert_retried_once(trials_of())


@pytest.mark.slow
def test_two_sweeps_share_one_study(folder, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "0.5")
    processes = [launch(folder, 4, 1), launch(folder, 4, 1)]
    for process in processes:
        output = output_of(process)
        assert process.exitcode == 0, output
    assert states(trials_of()) == {"COMPLETE": 8}
    log = Counter(line.split()[1] for line in (folder / "log").read_text().splitlines() if line.startswith("end"))
    assert set(log.values()) == {1} and len(log) == 8, "a trial ran twice"


@pytest.mark.slow
def test_two_sweeps_train_their_common_start_once(folder, monkeypatch):
    (folder / "space.py").write_text(SPACE + 'START = {"training.steps": 9}\n')
    monkeypatch.setenv("FAKE_SECONDS", "0.5")
    processes = [launch(folder, 2, 1), launch(folder, 2, 1)]
    assert [output_of(process).count("what every design starts from") for process in processes] in ([0, 1], [1, 0])
    assert [line.split()[1] for line in log(folder, "start")].count("start") == 1
    assert states(trials_of()) == {"COMPLETE": 4}


def kill(process, who):
    """Kill one worker of a sweep, the sweep, or the sweep and all of its workers."""
    workers = [
        child for child in psutil.Process(process.pid).children() if "resource_tracker" not in str(child.cmdline())
    ]
    victims = {"worker": workers[:1], "sweep": [psutil.Process(process.pid)]}
    for victim in victims.get(who, victims["sweep"] + workers):
        victim.kill()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("workers", ["fork"], indirect=True)
def test_random_kills_lose_and_double_nothing(folder, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "0.4")
    dice = random.Random(0)
    for _ in range(20):
        begun = len(log(folder, "start")) if (folder / "log").exists() else 0
        process = launch(folder, 3, 2)
        wait_for_lines(folder, begun + 1)
        time.sleep(dice.uniform(0, 0.6))
        kill(process, dice.choice(["worker", "sweep", "both"]))
        output_of(process)
        process.kill()
    monkeypatch.setenv("FAKE_SECONDS", "0")
    run(trials=0, workers=2)

    rows = read_outcome(load_study(open_storage("sqlite:///runs/studies.db"), "space")).rows
    complete = [row for row in rows if row.state == "complete"]
    assert {row.state for row in rows} <= {"complete", "killed", "failed", "reused"}, "none is left in flight"
    assert len({row.number for row in complete}) == len(complete) == len({str(row.params) for row in complete})
    for row in (row for row in rows if row.state == "failed"):
        assert "retries" in row.reason and row.number not in {other.number for other in complete}
    assert {row.number for row in rows if row.state == "killed"} <= {
        row.number for row in rows if row.state != "killed"
    }
    started, failed = {int(line.split()[1][-4:]) for line in log(folder, "start")}, {"failed", "killed"}
    assert started <= {row.number for row in rows}
    for number in {row.number for row in rows} - started:  # its sweep was killed each time before a worker had it
        assert {row.state for row in rows if row.number == number} == failed


def check_tracked(folder, trials):
    """One MLflow run for each trial, under one parent that holds the results."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    everything = client.search_runs([client.get_experiment_by_name("nsa-lab").experiment_id])
    (parent,) = [r for r in everything if r.data.tags["kind"] == "sweep"]
    children = {int(r.data.tags["trial"]): r for r in everything if r.data.tags["kind"] == "trial"}
    assert parent.info.run_name == "sweep-space" and parent.info.status == "FINISHED"
    names = {f.path for f in client.list_artifacts(parent.info.run_id)}
    assert names >= {"best.yaml", "pareto", "pareto.png", "pareto.html", "table.csv", "space.py", "base.yaml"}
    assert sorted(children) == [trial.number for trial in trials]
    for trial in trials:
        child = children[trial.number]
        assert child.info.run_name.startswith(f"space-trial-{trial.number:04d} block={trial.params['block']} window=")
        assert child.info.status == ("FINISHED" if trial.state.name == "COMPLETE" else "KILLED")
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.tags["state"] == ("finished" if trial.state.name == "COMPLETE" else "infeasible")
        assert trial.user_attrs["tracking_id"] == child.info.run_id
