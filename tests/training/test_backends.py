"""A design trains alike whichever path computes it."""

import pytest

from nsa_kernels.runtime import INTERPRET
from nsa_kernels.selection import unions
from nsa_lab.training import run
from nsa_lab.training.directory import read_series
from nsa_testing import requires_gpu

INTERPRETED = {"rel": 1e-5, "abs": 1e-6}
"""Sums in float32 in another order, over six steps of AdamW: losses differed by 1e-7. A wrong gradient shows from the
second step on."""
ON_A_GPU = {"rel": 1e-2, "abs": 1e-3}
"""Products there are of TF32."""
interpreted = pytest.mark.skipif(not INTERPRET, reason="needs TRITON_INTERPRET=1")
WALKS = {"over key blocks": -1.0, "over unions": float("inf"), "as they share": unions.MOST_WASTE}


def curve(config, directory):
    series = read_series(run(config, directory=directory, progress_bar=False).directory / "metrics.jsonl")
    return {name: list(series[name].values()) for name in ("train/loss", "gradient_norm", "val/loss")}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize(
    ("accelerator", "tolerance"),
    [
        pytest.param("cpu", INTERPRETED, marks=[pytest.mark.slow, interpreted]),
        pytest.param("gpu", ON_A_GPU, marks=[pytest.mark.gpu, requires_gpu]),
    ],
)
def test_the_kernels_train_as_the_torch_path_does(tiny, tmp_path, monkeypatch, walk, accelerator, tolerance):
    monkeypatch.setattr(unions, "MOST_WASTE", WALKS[walk])
    own = {"training.steps": 6, "training.log_every": 1, "training.val_every": 6, "training.threads": 1}
    own |= {"training.accelerator": accelerator, "attention.branches.selection.query_tile": 2}
    found = [curve(tiny(own | {"attention.backend": path}), tmp_path / path) for path in ("torch", "triton")]
    for name, values in found[0].items():
        assert len(values) > 0 and found[1][name] == pytest.approx(values, **tolerance), name
