"""Sweeps of several machines on one study: who does what, how much is left, and what a dead one leaves."""

import io
from collections import deque

import optuna
import pytest
from rich.console import Console

from nsa_lab.config import flatten, load_config, to_dict
from nsa_lab.runner.job import End
from nsa_lab.runner.recovery import identity
from nsa_lab.runner.view import View
from nsa_lab.search import recovery
from nsa_lab.search.lock import study_lock
from nsa_lab.search.recovery import next_trial, retry
from nsa_lab.search.rows import read_outcome
from nsa_lab.search.spec import Sweep
from nsa_lab.search.storage import open_storage
from nsa_lab.search.trial import Trials

ENDED = End(1.0, {"val/accuracy": 0.5})


@pytest.fixture
def machine(tmp_path):
    """Makes the source of a sweep that runs on the machine `host`, on one study with all others."""
    url = f"sqlite:///{tmp_path}/studies.db"
    storage = open_storage(url)
    study = optuna.create_study(storage=storage, study_name="s", direction="maximize")
    base = flatten(to_dict(load_config(None, {"tasks.needle.enabled": True, "tracking.enabled": False})))

    def made(host, total, suggest=anything, sampler="random", **options):
        plan = Sweep(tmp_path, tmp_path, {"val/accuracy": "maximize"}, suggest, None, sampler, None, 1,
                     {"dense": {"attention.method": "dense"}})  # fmt: skip
        return Trials(
            study=study,
            storage=storage,
            sweep=plan,
            base=base,
            seed=0,
            owner=identity() if host == "here" else {"host": host, "pid": 1, "started": "1"},
            directory=tmp_path / host,
            parent=None,
            view=View(Console(file=io.StringIO(), record=True), "trials", list(plan.objectives), total),
            trials=0,
            total=total,
            alone=study_lock(url, storage, "s"),
            **options,
        )

    return made


def anything(trial):
    return {"seed": trial.suggest_int("seed", 0, 10**6)}


def silence(source, seconds=recovery.GRACE_S + 60):
    """Let all heartbeats be `seconds` old."""
    with source.storage._backend.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE trial_heartbeats SET heartbeat = datetime('now', '-{seconds} seconds')")


def look(source):
    source._look(idle=True)


def test_a_sweep_that_holds_the_lock_writes_to_its_journal(tmp_path):
    """Optuna waits half a minute for whatever file has the name of its own lock."""
    url = f"journal://{tmp_path}/journal.log"
    storage = open_storage(url)
    with study_lock(url, storage, "s")():
        assert not (tmp_path / "journal.log.lock").exists()
        optuna.create_study(storage=storage, study_name="s")
    assert optuna.get_all_study_names(storage) == ["s"]


def rows_of(source):
    return [(row.number, row.state) for row in read_outcome(source.study).rows]


def test_a_total_is_counted_over_all_machines(machine):
    here, there = machine("here", 3), machine("there", 3)
    jobs = [here.take(identity()), there.take(identity()), here.take(identity())]
    assert all(jobs) and there.take(identity()) is None
    assert {job.name for job in jobs} == {"trial-0000", "trial-0001", "trial-0002"}
    look(there)
    assert there.left == there.elsewhere == 2, "it stays until these have ended, too"
    assert "waiting for 2 trials of other sweeps" in there.view.console.export_text()
    for source, job in zip((here, there, here), jobs, strict=True):
        assert source.ended(job, ENDED) is None
    look(there)
    assert there.left == 0 and machine("again", 3).left == 0, "the same command again adds none"
    assert machine("more", 5).left == 2


def test_what_a_silent_machine_leaves_is_trained_by_another(machine):
    here, there = machine("here", 2), machine("there", 2)
    lost = there.take(identity())
    mine = here.take(identity())
    silence(here)
    here.tick([mine])
    assert here.left == 1, "nobody looks before it is time"
    here.last_beat -= 61
    here.tick([mine])
    assert "1 trials of a sweep that is gone are queued again" in here.view.console.export_text()
    again = here.take(identity())
    assert (again.name, again.config) == (lost.name, lost.config) and here.take(identity()) is None
    here.ended(mine, ENDED), here.ended(again, ENDED)
    look(here)
    assert here.left == 0
    assert there.ended(lost, ENDED) is None, "it was slow, and its result is dropped"
    assert rows_of(here) == [(0, "killed"), (1, "complete"), (0, "complete")]


def test_a_trial_whose_handing_out_was_not_heard_is_handed_out_again(machine):
    here = machine("here", 1)
    recovery.next_trial(here.study, here.owner)  # the answer got lost with the connection
    look(here)
    job = here.take(identity())
    look(here)
    assert here.take(identity()) is None, "the one in flight stays so"
    here.ended(job, ENDED)
    assert rows_of(here) == [(0, "complete")]


def test_a_machine_that_dies_before_its_first_beat_is_missed(machine):
    here, there = machine("here", 1), machine("there", 1)
    optuna_ask = there.study.ask
    there.study.ask = lambda: (optuna_ask(), 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next_trial(there.study, there.owner)
    there.study.ask = optuna_ask
    silence(here)
    look(here)
    assert here.left == 1 and here.take(identity()).name == "trial-0000"


def test_a_machine_that_dies_while_it_recovers_loses_no_trial(machine):
    here, there = machine("here", 1), machine("there", 1)
    there.take(identity())
    trial = there.study.get_trials()[0]
    here.storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.FAIL)  # found silent; not yet queued
    look(here)
    assert here.left == 1 and here.take(identity()).name == "trial-0000"


def test_two_machines_that_queue_the_same_retry_train_it_once(machine):
    here, there = machine("here", 1), machine("there", 1)
    here.take(identity())
    trial = here.study.get_trials()[0]
    retry(here.study, trial, "its host fell silent", here.owner)
    here.study.enqueue_trial(trial.params, user_attrs=here.study.get_trials()[1].user_attrs)
    here.flights.of.clear()
    look(here)
    first = here.take(identity())
    assert first.name == "trial-0000" and there.take(identity()) is None and here.take(identity()) is None
    here.ended(first, ENDED)
    assert here.take(identity()) is None
    assert [state for _, state in rows_of(here)].count("complete") == 1


def test_without_its_lock_the_faster_of_two_keeps_the_last_trial(machine):
    here, there = machine("here", 1), machine("there", 1)
    there._count = lambda: None  # both have counted before either asks
    assert here.take(identity())
    assert there.take(identity()) is None
    assert there.study.get_trials()[1].state.name == "WAITING" and rows_of(here)[0] == (0, "running")


def test_a_searched_out_space_ends_for_all(machine):
    def few(trial):
        return {"seed": trial.suggest_int("seed", 0, 2)}

    here = machine("here", 50, few, "brute")
    trained = []
    while (job := here.take(identity())) is not None:
        trained.append(job.config["seed"])
        here.ended(job, ENDED)
    look(here)
    assert sorted(trained) == [0, 1, 2] and here.left == 0


def test_a_reference_is_trained_by_one_machine(machine):
    here, there = (machine(name, 1, references=deque(["dense"])) for name in ("here", "there"))
    dense = here.take(identity())
    assert dense.name == "dense" and there.take(identity()).name == "trial-0000"
    look(there)
    assert there.claimed == ["dense"]
    claim = here.study.user_attrs["claim:dense"]
    here.study.set_user_attr("claim:dense", {**claim, "heard": claim["heard"] - recovery.GRACE_S})
    here.last_beat -= 61
    here.tick([dense])
    look(there)
    assert there.claimed == ["dense"], "who trains it was heard again"
    here.ended(dense, ENDED)
    look(there)
    assert not there.claimed and not there.references


def test_a_reference_of_a_silent_machine_is_trained_by_another(machine):
    here, there = (machine(name, 1, references=deque(["dense"])) for name in ("here", "there"))
    there.take(identity())
    assert here.take(identity()).name == "trial-0000"
    claim = here.study.user_attrs["claim:dense"]
    here.study.set_user_attr("claim:dense", {**claim, "heard": claim["heard"] - recovery.GRACE_S})
    look(here)
    assert here.take(identity()).name == "dense"
