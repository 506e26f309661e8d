"""A step is the same step however it is cut into micro-batches."""

import pytest

from nsa_lab.training import run
from nsa_lab.training.directory import read_series


@pytest.mark.filterwarnings("ignore")
def test_batches_of_4x1_2x2_and_1x4_take_the_same_steps(tiny, rows):
    norms, losses = {}, {}
    for size, times in ((4, 1), (2, 2), (1, 4)):
        config = tiny(
            {
                "name": f"{size}x{times}",
                "tasks.needle.enabled": False,
                "data.annotations": str(rows / "rows.json"),
                "data.videos": str(rows),
                "training.steps": 3,
                "training.val_every": 3,
                "training.batch_size": size,
                "training.accumulate": times,
            }
        )
        series = read_series(run(config, progress_bar=False).directory / "metrics.jsonl")
        norms[size] = [series["gradient_norm"][step] for step in (1, 2, 3)]
        losses[size] = [series["train/loss"][step] for step in (1, 2, 3)]
    for size in (2, 1):
        assert norms[size] == pytest.approx(norms[4], rel=1e-4)
        assert losses[size] == pytest.approx(losses[4], rel=1e-4)
