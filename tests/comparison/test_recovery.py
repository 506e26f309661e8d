"""Comparisons that are killed, interrupted, doubled, or find damaged files and full disks."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from nsa_lab.comparison import compare, ledger
from nsa_lab.comparison.ledger import Ledger, job_of
from nsa_lab.comparison.plan import trainings
from nsa_lab.comparison.rows import ORIGIN, key_of, make_row, read_rows, write_rows
from nsa_lab.comparison.spec import chosen, load_comparison
from nsa_lab.errors import NsaLabError
from nsa_lab.files import FileLock
from nsa_lab.runner.job import End
from nsa_lab.runner.recovery import identity, is_alive
from nsa_lab.runner.view import View
from nsa_lab.tracking import record

JOBS = str(Path(__file__).parents[1] / "runner")
COMMAND = """
import signal, sys
from pathlib import Path
from nsa_lab import cli, comparison
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    compare = comparison.compare
    comparison.compare = lambda *arguments, **options: compare(*arguments, **options, runner="jobs:run")
    cli.main(["compare", *sys.argv[1:]])
"""
FILE = '''"""Question: which is best?"""
EXPERIMENTS = ("tiny.yaml",)
VARIANTS = {"uniform": {"attention.partition.kind": "uniform"}, "frame": {"attention.partition.kind": "frame"}}
REFERENCES = ("uniform",)
METRICS = {"val/accuracy": "maximize"}
SEEDS = (3, 4, 5)
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a comparison file, as the current one; jobs are stand-ins (see tests/runner/jobs.py)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(JOBS)
    monkeypatch.setenv("JOBS_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([JOBS, os.environ["PYTHONPATH"]]))
    values = {"tasks": {"recall": {"enabled": True}}, "tracking": {"enabled": False}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "study.py").write_text(FILE)
    (tmp_path / "go.py").write_text(COMMAND)
    return tmp_path


def run(**options):
    return compare(Path("study.py"), runner="jobs:run", **options)


def launch(*arguments):
    command = [sys.executable, "go.py", "study.py", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for_starts(folder, count):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        lines = (folder / "log").read_text().splitlines() if (folder / "log").exists() else []
        if len(lines) >= count:
            return [line.split() for line in lines]
        time.sleep(0.05)
    raise AssertionError("the comparison did not start its trainings")


def trained(folder):
    """(variant, seed) -> how often it was started."""
    return Counter(tuple(line.split()[:2]) for line in (folder / "log").read_text().splitlines())


def rows(out=Path("runs/comparisons/study")):
    return sorted((key[1], key[2]) for key in read_rows(out / "runs.csv"))


EVERYTHING = [(variant, seed) for variant in ("frame", "uniform") for seed in "345"]


@pytest.mark.slow
def test_a_killed_worker_s_training_is_retried_in_its_directory(folder, monkeypatch):
    monkeypatch.setenv("DOES_frame", "wait")
    monkeypatch.setenv("JOBS_WAIT", "0.5")
    process = launch("--workers", "2", "--seeds", "2")
    victim = next(pid for variant, _, pid in wait_for_starts(folder, 2) if variant == "frame")
    os.kill(int(victim), signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "tiny frame seed 3: its worker was killed by SIGKILL (out of memory?); queued again" in out
    assert trained(folder) == {("frame", "3"): 2} | {(v, s): 1 for v in ("frame", "uniform") for s in "34"} | {
        ("frame", "3"): 2
    }
    assert rows() == [("frame", "3"), ("frame", "4"), ("uniform", "3"), ("uniform", "4")]


@pytest.mark.slow
def test_a_training_that_kills_every_worker_fails_and_spares_the_others(folder, monkeypatch, capfd):
    monkeypatch.setenv("DOES_frame", "die")
    with pytest.raises(NsaLabError, match=r"1 of 2 .*: tiny-frame-seed3: its worker was killed by SIGKILL \(out"):
        run(seeds=1, workers=2)
    assert rows() == [("uniform", "3")] and trained(folder)["frame", "3"] == 3
    assert re.search(r"tiny frame seed 3 failed .* its worker was killed", capfd.readouterr().out)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_the_same_command_goes_on_whatever_ended_it(folder, monkeypatch, number):
    monkeypatch.setenv("DOES_frame", "wait")
    monkeypatch.setenv("JOBS_WAIT", "0.3")
    process = launch("--workers", "2")
    workers = [identity(int(pid)) for _, _, pid in wait_for_starts(folder, 4)[-2:]]
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    if number == signal.SIGKILL:
        assert process.returncode == -9
    else:
        assert process.returncode == 130
        assert err == "interrupted; the same command goes on from the last checkpoint\n"
    deadline = time.monotonic() + 20
    while any(map(is_alive, workers)):
        assert time.monotonic() < deadline, "workers outlive their comparison"
        time.sleep(0.1)
    done = rows()
    assert 0 < len(done) < 6
    before = trained(folder)
    run(workers=2)
    assert rows() == EVERYTHING
    assert all(trained(folder)[key] == before[key] for key in done), "what the rows hold was trained again"


@pytest.mark.slow
def test_two_comparisons_do_not_write_one_folder(folder, monkeypatch):
    monkeypatch.setenv("DOES_uniform", "wait")
    monkeypatch.setenv("JOBS_WAIT", "1")
    process = launch("--seeds", "1", "--out", "mine")
    wait_for_starts(folder, 1)
    with pytest.raises(NsaLabError, match="another comparison writes mine; wait for it, or choose another folder"):
        run(seeds=1, out=Path("mine"))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, (out, err)
    run(seeds=1, out=Path("mine"))
    assert FileLock(Path("mine/compare.lock")).take()


@pytest.mark.slow
@pytest.mark.parametrize("place", ["runs.csv", "tracking.json", "both"])
def test_a_full_disk_ends_in_one_line_and_loses_nothing(folder, monkeypatch, place):
    def full(file, *_):
        if place == "both":  # the parent run's record cannot be closed either
            disk.setattr(record, "write_json", full)
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    with monkeypatch.context() as disk:
        disk.setattr(*((record, "write_json", full) if place == "tracking.json" else (ledger, "write_rows", full)))
        said = (
            rf"^cannot write .*{'runs.csv' if place == 'both' else place}: No space.*; what was trained is kept; make"
        )
        with pytest.raises(NsaLabError, match=said):
            run(seeds=1)
    assert not Path("runs/comparisons/study/runs.csv").exists()
    run(seeds=1)
    assert rows() == [("frame", "3"), ("uniform", "3")]


@pytest.mark.slow
def test_the_parent_run_ends_when_its_comparison_does(folder):
    from mlflow import MlflowClient

    everything = run(seeds=1, overrides=["tracking.enabled=true"])
    run(seeds=2, overrides=["tracking.enabled=true"])
    client = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    (parent,) = client.search_runs([client.get_experiment_by_name("nsa-lab").experiment_id])
    assert (parent.info.run_name, parent.info.status) == ("comparison-study", "FINISHED")
    assert {"kind": "comparison", "comparison": "study"}.items() <= parent.data.tags.items()
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert files == {"study.py", "runs.csv", "table.csv", "table.md", "table.tex"}
    assert everything == Path("runs/comparisons/study")


@pytest.fixture
def planned(folder):
    """The first two trainings, uniform and frame with seed 3."""
    comparison = load_comparison("study.py")
    return trainings(comparison, *chosen(comparison, (), 1), ())


ENDED = End(1.0, {"val/accuracy": 0.5, "val/loss": 1.0})


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", None])
def test_a_damaged_origin_is_a_fault_of_its_training(planned, content):
    book = Ledger(Path("runs.csv"), {}, {str(t.directory): t for t in planned}, View(Console(quiet=True), "t", [], 2))
    for training, origin in zip(planned, (content, json.dumps(dict.fromkeys(ORIGIN, "x"))), strict=True):
        training.directory.mkdir(parents=True)
        if origin is not None:
            (training.directory / "origin.json").write_text(origin)
        book.enter(job_of(training, "study", None, ""), ENDED)
    damaged, good = planned
    (fault,) = book.faults
    assert re.search(
        rf"uniform-seed3: .*origin\.json (is damaged|does not exist).*; delete {damaged.directory} to", fault
    )
    assert list(read_rows(Path("runs.csv"))) == [key_of(good)]


def test_damaged_rows_are_refused_and_not_overwritten(planned):
    out = Path("runs/comparisons/study")
    write_rows(out / "runs.csv", [make_row(t, ENDED.metrics, dict.fromkeys(ORIGIN, "x")) for t in planned])
    good = (out / "runs.csv").read_text()
    for content, said in {
        good[:-10]: r"runs\.csv:3 has more or fewer cells than the first line",
        good.replace("x\n", "x,x\n"): r"runs\.csv:2 has more or fewer cells",
        good.replace(",3,", ",three,"): r"runs\.csv:2: seed is 'three', not a number; correct the row",
        "a,b\n1,2\n": "holds no rows of a comparison",
        "\0\0": "cannot be read as a CSV|holds no rows of a comparison",
    }.items():
        (out / "runs.csv").write_text(content)
        with pytest.raises(NsaLabError, match=said):
            run(seeds=1)
        assert (out / "runs.csv").read_text() == content
    noted = good.replace("date\n", "date,note\n").replace("x\n", "x,fine\n")
    (out / "runs.csv").write_text(noted)
    write_rows(out / "runs.csv", read_rows(out / "runs.csv").values())
    assert (out / "runs.csv").read_text() == noted, "a column that someone added stays"
