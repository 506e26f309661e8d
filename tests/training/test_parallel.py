"""Several processes train the model that one process would: the same steps, and taken up by another number of them."""

import pytest
import torch

from nsa_lab.model.trained import check_readable, last_weights
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


LONG = {"training.steps": 6, "training.val_every": 3, "training.checkpoint_every": 2}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 2)])
def test_a_run_goes_on_with_another_number_of_processes(uneven, tmp_path, before, after):
    alone = run(uneven(**LONG), directory=tmp_path / "alone", progress_bar=False)

    def stop(progress):
        if progress.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(
            uneven(**LONG, **{"training.devices": before}),
            directory=tmp_path / "cut",
            progress_bar=False,
            on_progress=stop,
        )
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    assert check_readable(last) == 4
    cut = run(uneven(**LONG, **{"training.devices": after}), directory=tmp_path / "cut", progress_bar=False)
    assert_same(curves(cut.directory), curves(alone.directory))
    weights = last_weights(cut.directory)
    for name, weight in last_weights(alone.directory).items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-4)  # a tenth of one step of AdamW
