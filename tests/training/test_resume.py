"""A run that was broken off and taken up again draws the same curve as one that was left alone."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from nsa_lab.config import to_yaml
from nsa_lab.training import run
from nsa_lab.training.directory import read_series

TIMES = ("throughput/", "partition/share_of_step")


def curves(directory):
    series = read_series(directory / "metrics.jsonl")
    return {name: values for name, values in series.items() if not name.startswith(TIMES)}


def weights(directory):
    return torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def break_at(step, validated=False):
    def on_progress(progress):
        if progress.step == step and progress.validated == validated:
            raise KeyboardInterrupt
        return False

    return on_progress


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


EVERYTHING = {
    "attention.partition.kind": "router",
    "training.accumulate": 2,
    "training.checkpoint_every": 2,
    "training.val_every": 1,
}
"""What most of the slow cases have one by one."""


@pytest.fixture(scope="module")
def whole_runs():
    """By their overrides, the directories of runs that nothing interrupts: tests of a design share one."""
    return {}


@pytest.fixture
def uninterrupted(tiny, tmp_path_factory, whole_runs):
    def make(overrides):
        if repr(overrides) not in whole_runs:
            directory = tmp_path_factory.mktemp("uninterrupted")
            whole_runs[repr(overrides)] = run(tiny(overrides), directory=directory, progress_bar=False).directory
        return whole_runs[repr(overrides)]

    return make


@pytest.mark.parametrize(
    ("overrides", "stop"),
    [
        slow({"attention.partition.kind": "router"}, break_at(5)),
        ({}, break_at(4)),  # one step after a checkpoint, before the validation of that step
        slow({}, break_at(4, validated=True)),
        slow({}, break_at(2)),  # before the first checkpoint
        slow({}, break_at(8)),  # after the last step, before its validation
        slow({"training.checkpoint_every": 4}, break_at(5)),  # the checkpoint fell on a validation
        slow({"training.checkpoint_every": 4}, break_at(4, validated=True)),  # validated, not yet saved
        slow({"training.checkpoint_every": 2, "training.val_every": 1}, break_at(7)),
        slow({"training.accumulate": 2}, break_at(7)),
        slow({"data.workers": 1}, break_at(5)),
        slow({"training.val_every": 100}, break_at(5)),
        (EVERYTHING, break_at(7, validated=True)),
    ],
)
def test_broken_off_and_resumed_equals_uninterrupted(tiny, tmp_path, uninterrupted, overrides, stop):
    whole = uninterrupted(overrides)
    config = tiny(overrides)
    with pytest.raises(KeyboardInterrupt):
        run(config, directory=tmp_path / "broken", progress_bar=False, on_progress=stop)

    resumed = run(config, directory=tmp_path / "broken", progress_bar=False)

    assert curves(resumed.directory) == curves(whole)
    found = weights(resumed.directory)
    for name, value in weights(whole).items():
        assert torch.equal(value, found[name]), name


KILLED = {"training.steps": 30, "training.checkpoint_every": 5, "training.val_every": 10}


def kill_once_saved(process, killed, is_alive):
    """Kill a run that has written two checkpoints into `killed`."""
    deadline = time.monotonic() + 120
    while not (killed / "checkpoints" / "previous.ckpt").exists():
        assert is_alive(), "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()


def test_killed_and_resumed_equals_uninterrupted(tiny, tmp_path, uninterrupted):
    whole, killed, config = uninterrupted(KILLED), tmp_path / "killed", tiny(KILLED)
    options = {"directory": killed, "progress_bar": False}
    process = multiprocessing.get_context("fork").Process(target=run, args=(config,), kwargs=options)
    process.start()
    kill_once_saved(process, killed, process.is_alive)
    process.join()
    assert process.exitcode == -signal.SIGKILL and not (killed / "summary.json").exists()

    run(config, **options)

    assert curves(killed) == curves(whole)


@pytest.mark.slow
def test_a_killed_command_given_again_equals_uninterrupted(tiny, tmp_path, uninterrupted):
    whole, killed, config = uninterrupted(KILLED), tmp_path / "killed", tmp_path / "config.yaml"
    config.write_text(to_yaml(tiny(KILLED)))
    command = [sys.executable, "-m", "nsa_lab.cli", "train", str(config), "--quiet", "--dir", str(killed)]
    command += ["training.threads=1"]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    kill_once_saved(process, killed, lambda: process.poll() is None)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "summary.json").exists()

    subprocess.run(command, check=True)

    assert curves(killed) == curves(whole)
