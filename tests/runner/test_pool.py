"""The pool: what becomes of jobs and workers when things go wrong. Jobs are stand-ins (see jobs.py)."""

import io
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from rich.console import Console

from nsa_lab.config import load_config, to_dict
from nsa_lab.errors import NsaLabError
from nsa_lab.runner.job import Job, JobList
from nsa_lab.runner.pool import Pool, sigterm_as_interrupt
from nsa_lab.runner.recovery import MAX_RETRIES, identity, is_alive
from nsa_lab.runner.view import View

pytestmark = pytest.mark.slow


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes a pool of jobs that do what their names say; `ends` are what became of them, `said` what was shown."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("JOBS_LOG", str(tmp_path / "log"))
    config = to_dict(load_config(None, {"tasks.needle.enabled": True}))

    def pool(*deeds, workers=1, asks=False, run="jobs:run", after=None, **options):
        def place(number):
            return None if number is None else str(tmp_path / f"{number}")

        jobs = [
            Job(f"{n} {deed}", config, place(n), run, {"variant": deed, "seed": "0"}, asks=asks, after=place(waits))
            for n, (deed, waits) in enumerate(zip(deeds, after or [None] * len(deeds), strict=True))
        ]
        ends = {}

        def tell(job, end):
            ends[job.name] = end
            return end.fault

        console = Console(file=io.StringIO(), record=True, width=200)
        made = Pool(JobList(jobs, tell), run, workers, tmp_path / "logs", View(console, "jobs", [], 9), **options)
        made.ends, made.said = ends, console.export_text
        return made

    return pool


def starts(tmp_path, number):
    file = tmp_path / str(number) / "starts"
    return len(file.read_text()) if file.exists() else 0


def test_jobs_that_kill_their_worker_are_retried_and_spare_the_others(make, tmp_path):
    pool = make("good", "die", "die_once", "leave", "good", workers=2)
    pool.work()
    faults = {name: end.fault for name, end in pool.ends.items() if end.fault}
    assert faults == {
        "1 die": f"its worker was killed by SIGKILL (out of memory?), after {MAX_RETRIES} retries",
        "3 leave": f"its worker ended with exit code 3, after {MAX_RETRIES} retries",
    }
    assert [starts(tmp_path, n) for n in range(5)] == [1, MAX_RETRIES + 1, 2, MAX_RETRIES + 1, 1]
    assert pool.ends["2 die_once"].metrics["val/accuracy"] == 0.25
    assert pool.said().count("queued again") == 2 * MAX_RETRIES + 1
    assert not multiprocessing.active_children()


def test_a_job_that_raises_fails_alone_and_its_traceback_is_in_the_log(make, tmp_path):
    pool = make("crash", "fail", "good")
    pool.work()
    assert pool.ends["0 crash"].fault.startswith("ValueError: wrong at") and "more" not in pool.ends["0 crash"].fault
    assert pool.ends["1 fail"].fault == "loss became nan; lower it"
    assert pool.ends["2 good"].fault is None and starts(tmp_path, 0) == 1
    assert "Traceback" in (tmp_path / "logs/worker-0.log").read_text()


def test_the_same_fault_three_times_in_a_row_ends_all(make, tmp_path):
    pool = make(*["crash"] * 2, "good", *["crash"] * 4)
    with pytest.raises(NsaLabError, match=r"^3 jobs in a row failed with the same fault: ValueError: wrong.*/logs$"):
        pool.work()
    assert len(pool.ends) == 6 and pool.source.left == 1
    pool = make(*["die"] * 5)
    with pytest.raises(NsaLabError, match=r"3 jobs in a row .* killed by SIGKILL \(out of.*, after 2 retries; mend it"):
        pool.work()


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ("dies_at_import:run", r"worker \d ended with exit code 7 before its first job: no such driver; see .*log$"),
        ("jobs:nothing", "runner jobs:nothing cannot be imported"),
    ],
)
def test_workers_that_cannot_begin_end_all_at_once(make, run, said):
    pool = make("good", "good", workers=2, run=run)
    with pytest.raises(NsaLabError, match=said):
        pool.work()
    assert pool.source.left == 2 and not multiprocessing.active_children()


def test_a_worker_that_is_killed_while_it_imports_is_replaced(make, tmp_path, monkeypatch):
    monkeypatch.setenv("DIE_ONCE", str(tmp_path / "died"))
    pool = make("good", workers=1, run="killed_at_import:run")
    pool.work()
    assert pool.source.left == 0 and (tmp_path / "died").exists() and pool.stillborn == 1


def test_after_the_time_is_up_each_worker_has_had_one_job(make):
    pool = make(*["good"] * 5, workers=2, minutes=0.0)
    pool.work()
    assert len(pool.ends) == 2 and pool.source.left == 3


def test_a_job_that_died_after_the_time_was_up_is_left(make, tmp_path):
    pool = make("die", "good", minutes=0.0)
    pool.work()
    assert not pool.ends and pool.source.left == 2 and starts(tmp_path, 0) == 1


def test_a_worker_takes_what_is_ready_beside_a_long_job(make, monkeypatch):
    monkeypatch.setenv("JOBS_WAIT", "1")
    pool = make("wait", "good", "good", "good", "good", "fail", "good", after=[None, None, 1, 1, 0, None, 5], workers=2)
    pool.work()
    assert list(pool.ends) == ["1 good", "2 good", "3 good", "5 fail", "0 wait", "4 good"]
    assert pool.source.left == 0, "what came after the failed one is dropped"


def test_after_the_time_is_up_nothing_begins_that_had_to_wait(make):
    pool = make("wait", "good", "good", after=[None, 0, 0], workers=2, minutes=0.0)
    pool.work()
    assert list(pool.ends) == ["0 wait"] and pool.source.left == 2


def test_a_job_that_asks_is_told_when_to_stop(make, monkeypatch):
    heard = []

    def hear(job, progress):
        heard.append((progress.step, progress.validated))
        return progress.step == 2

    for asks, stopped in ((True, 2), (False, None)):
        pool = make("good", asks=asks)
        monkeypatch.setattr(pool.source, "heard", hear)
        pool.work()
        assert pool.ends["0 good"].metrics.get("stopped") == stopped
    assert (2, True) in heard and (4, True) in heard


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_gives_the_jobs_back_and_leaves_no_process(make, monkeypatch, number):
    pool = make("wait", "wait", "wait", workers=2)
    busy = []

    def tick(jobs):
        if len(jobs) == 2 and not busy:
            busy.extend(identity(worker.process.pid) for worker in pool.crew)
            os.kill(os.getpid(), number)

    monkeypatch.setattr(pool.source, "tick", tick)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), sigterm_as_interrupt():
        pool.work()
    assert pool.source.left == 3 and not pool.ends
    assert len(busy) == 2 and not any(map(is_alive, busy)) and not multiprocessing.active_children()
    assert signal.getsignal(signal.SIGTERM) == before
