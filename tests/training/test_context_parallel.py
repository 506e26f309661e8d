"""Processes that share each sample take the steps that one process would."""

import pytest

from nsa_lab.training import run
from nsa_parallel import assert_same, curves


@pytest.mark.filterwarnings("ignore")
def test_two_processes_share_each_sample_and_take_the_steps_of_one(uneven, tmp_path):
    alone = run(uneven(), directory=tmp_path / "one", progress_bar=False)
    shared = {"training.devices": 2, "training.context_parallel": 2}
    both = run(uneven(**shared), directory=tmp_path / "two", progress_bar=False)
    assert_same(curves(both.directory), curves(alone.directory))
