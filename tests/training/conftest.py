import pytest
import torch

from nsa_lab.config import load_config
from nsa_testing import TINY


@pytest.fixture
def tiny(clips, tmp_path):
    """Makes configs of runs that take about a second; keyword `overrides` are dotted keys."""
    torch.set_num_threads(1)

    def make(overrides=None):
        places = {"data.cache_dir": str(clips), "output.dir": str(tmp_path / "runs")}
        return load_config(None, TINY | places | (overrides or {}))

    return make
