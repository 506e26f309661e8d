"""A design trains alike whichever path computes it: in the interpreter losses of six steps of AdamW differ by 1e-7."""

import pytest

from nsa_kernels.runtime import INTERPRET
from nsa_kernels.selection import unions
from nsa_lab.training import run
from nsa_parallel import TOLERANCE, curves
from nsa_testing import requires_gpu

ON_A_GPU = {"rel": 1e-2, "abs": 1e-3}
"""Products there are of TF32."""
interpreted = pytest.mark.skipif(not INTERPRET, reason="needs TRITON_INTERPRET=1")
WALKS = {"over key blocks": -1.0, "over unions": float("inf"), "as they share": unions.MOST_WASTE}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize(
    ("accelerator", "tolerance"),
    [
        pytest.param("cpu", TOLERANCE, marks=[pytest.mark.slow, interpreted]),
        pytest.param("gpu", ON_A_GPU, marks=[pytest.mark.gpu, requires_gpu]),
    ],
)
def test_the_kernels_train_as_the_torch_path_does(tiny, tmp_path, monkeypatch, walk, accelerator, tolerance):
    monkeypatch.setattr(unions, "MOST_WASTE", WALKS[walk])
    own = {"training.steps": 6, "training.log_every": 1, "training.val_every": 6, "training.threads": 1}
    own |= {"training.accelerator": accelerator, "attention.branches.selection.query_tile": 2}
    configs = {path: tiny(own | {"attention.backend": path}) for path in ("torch", "triton")}
    runs = [run(config, directory=tmp_path / path, progress_bar=False) for path, config in configs.items()]
    plain, kernels = (curves(one.directory) for one in runs)
    for name in ("train/loss", "gradient_norm", "val/loss"):
        assert len(plain[name]) > 0 and kernels[name] == pytest.approx(plain[name], **tolerance), name
