"""Several processes train the model that one process would: the same steps, and taken up by another number of them."""

import pytest

from nsa_lab.training import run
from nsa_lab.training.directory import read_series

CURVES = ("train/loss", "train/accuracy", "gradient_norm", "val/loss", "val/accuracy", "learning_rate")
TOLERANCE = {"rel": 1e-5, "abs": 1e-6}
"""Sums in float32 in another order."""


@pytest.fixture
def uneven(tiny, rows):
    """Configs whose answers have 1 and 40 words in turn; two micro-batches a step for each of two processes."""

    def make(**overrides):
        given = {
            "tasks.needle.enabled": False,
            "data.annotations": str(rows / "rows.json"),
            "data.videos": str(rows),
            "training.steps": 3,
            "training.val_every": 3,
            "training.batch_size": 1,
            "training.accumulate": 4,
            "training.accelerator": "cpu",
            "training.threads": 1,
        }
        return tiny(given | overrides)

    return make


def curves(directory):
    series = read_series(directory / "metrics.jsonl")
    return {name: series[name] for name in CURVES}


def assert_same(a, b):
    for name in CURVES:
        assert a[name] == pytest.approx(b[name], **TOLERANCE), name


@pytest.mark.filterwarnings("ignore")
def test_two_processes_take_the_steps_of_one(uneven, tmp_path):
    alone = run(uneven(), directory=tmp_path / "one", progress_bar=False)
    both = run(uneven(**{"training.devices": 2}), directory=tmp_path / "two", progress_bar=False)
    assert_same(curves(both.directory), curves(alone.directory))
    assert (both.directory / "checkpoints" / "last.ckpt").is_dir()
