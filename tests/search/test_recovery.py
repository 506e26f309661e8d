"""Trials whose process died, here (by pid) and on another host (by Optuna's heartbeat)."""

import io
import subprocess
import sys
from collections import Counter
from pathlib import Path

import optuna
import pytest
from rich.console import Console

from nsa_lab.config import flatten, load_config, to_dict
from nsa_lab.runner.job import End, Progress
from nsa_lab.runner.recovery import MAX_RETRIES, identity
from nsa_lab.runner.view import View
from nsa_lab.search import recovery
from nsa_lab.search.recovery import beat, recover
from nsa_lab.search.rows import read_outcome
from nsa_lab.search.spec import Sweep
from nsa_lab.search.storage import open_storage
from nsa_lab.search.trial import Trials


@pytest.fixture
def storage(tmp_path):
    return open_storage(f"sqlite:///{tmp_path}/studies.db")


@pytest.fixture
def make(storage, tmp_path):
    """Makes the sources of sweeps of one study; gives what they said too."""

    def source(left=1, owner=None, place=storage):
        objectives = {"val/accuracy": "maximize"}
        study = optuna.create_study(storage=place, study_name="s", direction="maximize", load_if_exists=True)
        base = load_config(None, {"tasks.needle.enabled": True, "tracking.enabled": False})
        return Trials(
            study=study,
            storage=place,
            sweep=Sweep(tmp_path, tmp_path, objectives, suggest, None, "random", "median", 1),
            base=flatten(to_dict(base)),
            seed=0,
            owner=owner or identity(),
            directory=tmp_path / "trials",
            parent=None,
            view=View(Console(file=io.StringIO(), record=True), "trials", list(objectives), left),
            trials=left,
        )

    return source


def suggest(trial):
    return {"seed": trial.suggest_int("seed", 0, 10**6)}


def dead():
    """The identity of a process that was here and ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    who = identity(process.pid)
    process.communicate()
    return who


def states(trials):
    return Counter(trial.state.name for trial in trials.study.get_trials())


def silence(storage, seconds):
    """Let all heartbeats be `seconds` old."""
    with storage._backend.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE trial_heartbeats SET heartbeat = datetime('now', '-{seconds} seconds')")


ELSEWHERE = {"host": "elsewhere", "pid": 1, "started": "1"}


def test_a_silent_host_s_trial_is_queued_again_and_comes_first(make, storage):
    there = make(owner=ELSEWHERE)
    job = there.take(ELSEWHERE)
    here = make()
    assert recover(here.study, storage, here.owner) == 0, "it has just been heard"
    silence(storage, recovery.GRACE_S + 60)
    assert recover(here.study, storage, here.owner) == 1
    assert states(here) == {"FAIL": 1, "WAITING": 1}
    again = here.take(identity())
    first, second = here.study.get_trials()
    assert (again.directory, again.config) == (job.directory, job.config) and first.params == second.params
    wanted = {"retry_of": 0, "retry_from": 0, "retries": 1}
    assert wanted.items() <= second.user_attrs.items() and second.user_attrs["owner"] == identity()
    (row, _) = read_outcome(here.study).rows
    assert (row.state, row.reason) == ("killed", "its host fell silent")
    assert recover(here.study, storage, here.owner) == 0

    # The host was not dead but slow: its result is dropped, and said so.
    assert there.heard(job, Progress(1, 2, {"val/accuracy": 0.5}, validated=True)), "it is told to stop"
    assert there.ended(job, End(1.0, {"val/accuracy": 0.5})) is None
    assert "another queued it again" in there.view.console.export_text()
    assert here.ended(again, End(1.0, {"val/accuracy": 0.7})) is None
    assert states(here) == {"FAIL": 1, "COMPLETE": 1} and here.study.best_value == 0.7


def test_a_silent_host_s_trial_is_not_retried_for_ever(make, storage):
    for _ in range(MAX_RETRIES + 1):
        there = make(owner=ELSEWHERE)
        assert there.take(ELSEWHERE)
        silence(storage, recovery.GRACE_S + 60)
        recover(there.study, storage, identity())
    assert states(there) == {"FAIL": MAX_RETRIES + 1}
    assert [row.reason for row in read_outcome(there.study).rows] == ["its host fell silent"] * (MAX_RETRIES + 1)


def test_only_lives_without_a_new_checkpoint_count(make, storage):
    for life in range(MAX_RETRIES + 4):
        gone = dead()
        job = make(owner=gone).take(gone)
        checkpoint = Path(job.directory) / "checkpoints" / "last.ckpt"
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        if life < 3:
            checkpoint.write_text(str(life))
        assert recover(make().study, storage, identity()) == (life < MAX_RETRIES + 3)
    rows = read_outcome(make().study).rows
    assert {row.number for row in rows} == {0} and [row.retry for row in rows] == list(range(MAX_RETRIES + 4))


def test_the_trials_of_a_sweep_that_slept_here_are_its_own(make, storage):
    """A laptop that was shut beats no heart, but the process is there when it wakes."""
    mine = make()
    mine.take(identity())
    silence(storage, 10 * recovery.GRACE_S)
    assert recover(mine.study, storage, mine.owner) == 0 and states(mine) == {"RUNNING": 1}


def test_a_trial_of_a_dead_sweep_here_needs_no_silence(make, storage):
    gone = dead()
    make(owner=gone).take(gone)
    mine = make()
    assert recover(mine.study, storage, mine.owner) == 1
    assert mine.study.get_trials()[0].user_attrs["reason"] == "its sweep was killed"


def test_a_retry_that_dies_before_suggest_keeps_its_design(make, storage):
    gone = dead()
    make(owner=gone).take(gone)
    mine = make()
    recover(mine.study, storage, mine.owner)
    recovery.next_trial(mine.study, gone)
    assert recover(mine.study, storage, mine.owner) == 1
    mine.take(identity())
    first, *_, last = mine.study.get_trials()
    assert last.params == first.params and last.user_attrs["retry_of"] == 0


def test_trials_in_flight_beat(make, storage, monkeypatch):
    source = make(2)
    jobs = [source.take(identity()) for _ in range(2)]
    beats = []
    monkeypatch.setattr(storage, "record_heartbeat", beats.append)
    source.tick(jobs)
    assert not beats
    monkeypatch.setattr("nsa_lab.search.trial.HEARTBEAT_S", 0)
    source.tick(jobs)
    assert set(beats) == {1, 2}


def test_a_journal_has_no_heartbeat_and_other_hosts_trials_are_never_touched(make, tmp_path):
    journal = open_storage(f"journal://{tmp_path}/journal.log")
    there = make(owner=ELSEWHERE, place=journal)
    there.take(ELSEWHERE)
    beat(journal, there.study.get_trials()[0])
    gone = dead()
    make(owner=gone, place=journal).take(gone)
    assert recover(there.study, journal, identity()) == 1
    assert [trial.state.name for trial in there.study.get_trials()] == ["RUNNING", "FAIL", "WAITING"]


def test_what_nobody_s_sweep_handed_out_is_not_queued(make, storage):
    source = make()
    with pytest.warns(UserWarning, match="Heartbeat"):
        beat(storage, source.study.ask())
    silence(storage, recovery.GRACE_S + 60)
    assert recover(source.study, storage, source.owner) == 0
    assert len(source.study.get_trials()) == 1
