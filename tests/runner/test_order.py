"""Which job comes next, and how much longer all take; without processes."""

from types import SimpleNamespace

import pytest

from nsa_lab.runner.estimate import Estimate
from nsa_lab.runner.job import End, Job, JobList


def job(name, after=None):
    return Job(name, {}, name, after=after)


def names(jobs):
    found = []
    while (one := jobs.take({})) is not None:
        found.append(one.name)
    return found


def test_a_job_begins_when_its_own_start_is_over_and_not_before():
    jobs = JobList([job("s0"), job("s1"), job("a0", "s0"), job("a1", "s1"), job("b", "elsewhere")], lambda *_: None)
    assert names(jobs) == ["s0", "s1", "b"] and jobs.left == 2
    jobs.ended(job("s1"), End(1.0))
    assert names(jobs) == ["a1"] and jobs.left == 1
    jobs.died(job("s0"), "killed")
    assert names(jobs) == ["s0"], "tried again, before what waits for it"
    jobs.ended(job("s0"), End(1.0))
    assert names(jobs) == ["a0"] and jobs.left == 0


def test_what_comes_after_a_job_that_failed_is_dropped():
    chain = [job("s"), job("other"), job("a", "s"), job("b", "a"), job("c", "other")]
    jobs = JobList(chain, lambda _, end: end.fault)
    assert names(jobs) == ["s", "other"]
    assert jobs.ended(job("s"), End(1.0, fault="nan")) == "nan"
    assert jobs.left == 1 and names(jobs) == []
    jobs.ended(job("other"), End(1.0))
    assert names(jobs) == ["c"] and jobs.left == 0


def worker(name, since, step=0, steps=100):
    progress = SimpleNamespace(step=step, steps=steps) if step else None
    return SimpleNamespace(job=SimpleNamespace(name=name), since=since, progress=progress)


KINDS = {"s0": "start", "s1": "start"} | {f"d{n}": "design" for n in range(8)}


def test_long_starts_tell_nothing_of_short_designs():
    estimate = Estimate(KINDS)
    assert estimate.left(10, [worker("s0", 0), worker("s1", 0)], now=10.0) == (0.0, {"start": 2, "design": 8})
    crew = [worker("s0", 0, step=50), worker("s1", 0, step=20)]
    seconds, unknown = estimate.left(10, crew, now=40.0)
    assert unknown == {"design": 8} and seconds == pytest.approx(140 - 40), "the mean of 80 and 200 s, two at a time"

    estimate.end("s0", 80.0, 70.0)
    crew = [worker("d0", 80, step=50), worker("s1", 0, step=50)]
    seconds, unknown = estimate.left(10, crew, now=85.0)
    assert not unknown and seconds == pytest.approx((8 * 10 - 5) / 2), "a start has taken 80 s, a design promises 10"
    for n in range(8):
        estimate.end(f"d{n}", 90.0, 10.0)
    seconds, unknown = estimate.left(10, [worker("s1", 60), SimpleNamespace(job=None)], now=90.0)
    assert not unknown and seconds == pytest.approx(50), "one is left: the other worker is no help"


def test_without_kinds_jobs_are_alike_and_those_of_no_worker_have_no_length():
    estimate = Estimate()
    estimate.end("reused", 0.0, None)
    assert estimate.left(5, [], now=0.0) == (0.0, {"": 4})
    estimate.end("one", 20.0, 20.0)
    assert estimate.left(5, [worker("two", 20.0)], now=25.0) == (55.0, {})
    assert estimate.left(2, [], now=25.0) == (0.0, {})
