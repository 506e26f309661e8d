"""Sweeps in processes of their own on the stand-in runner of tests/search, for tests that do them harm."""

import json
import multiprocessing
import tempfile
import time
from collections import Counter
from pathlib import Path

SPACE = """
BASE = "base.yaml"
OBJECTIVES = {"val/accuracy": "maximize", "budget/keys_per_query": "minimize"}
SAMPLER = "random"
REFERENCES = {}

def suggest(trial):
    block = trial.suggest_categorical("block", [8, 16, 32])
    window = trial.suggest_int("window", 8, 100000)
    return {"attention.partition.block_size": block, "attention.branches.window.size": window}
"""


def states(trials):
    return Counter(trial.state.name for trial in trials)


def log(folder, word):
    return [line for line in (folder / "log").read_text().splitlines() if line.startswith(word)]


def launch(folder, trials, workers, *overrides, **options):
    """A sweep in a process of its own, which starts as its workers do (the fixture `workers`)."""
    import fake_runner

    output = tempfile.mkstemp(dir=folder, prefix="said-")[1]
    options |= {"trials": trials, "workers": workers, "overrides": overrides}
    target, arguments = fake_runner.sweep_in_a_process, ("space.py", options, output)
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments, name=output)
    process.start()
    return process


def output_of(process):
    """What a sweep wrote until it ended."""
    process.join(120)
    return Path(process.name).read_text()


def wait_for_lines(folder, count, timeout=120):
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        lines = (folder / "log").read_text().splitlines() if (folder / "log").exists() else []
        starts = [line for line in lines if line.startswith("start")]
        if len(starts) >= count:
            return starts[-2:]
        time.sleep(0.05)
    raise AssertionError(f"the sweep did not start its trials: {[f.read_text() for f in folder.glob('said-*')]}")


def assert_retried_once(trials, same=("directory",)):
    """Each failed trial has one retry with its parameters and the `same` attributes, and that one is complete."""
    for trial in (t for t in trials if t.state.name == "FAIL"):
        retries = [t for t in trials if t.user_attrs.get("retry_from") == trial.number]
        assert [t.state.name for t in retries] == ["COMPLETE"]
        assert retries[0].params == trial.params
        assert all(retries[0].user_attrs[key] == trial.user_attrs[key] for key in same)
    designs = [json.dumps(t.params) for t in trials if t.state.name == "COMPLETE"]
    assert len(set(designs)) == len(designs), "a design was trained twice"
