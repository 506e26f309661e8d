import pytest
import torch

from nsa_lab.config import load_config

TINY = {
    "name": "tiny",
    "tasks.needle.enabled": True,
    "tasks.needle.frames": 8,
    "tasks.needle.train_clips": 10,
    "tasks.needle.val_clips": 4,
    "model.hidden_size": 32,
    "model.intermediate_size": 64,
    "model.num_heads": 2,
    "model.num_kv_heads": 1,
    "model.vision_hidden_size": 32,
    "attention.partition.block_size": 4,
    "attention.branches.selection.block_count": 2,
    "attention.branches.window.size": 4,
    "training.steps": 8,
    "training.batch_size": 3,
    "training.val_every": 4,
    "training.checkpoint_every": 3,
    "training.log_every": 1,
    "training.warmup_steps": 2,
    "tracking.enabled": False,
}


@pytest.fixture
def tiny(clips, tmp_path):
    """Makes configs of runs that take about a second; keyword `overrides` are dotted keys."""
    torch.set_num_threads(1)

    def make(overrides=None):
        places = {"data.cache_dir": str(clips), "output.dir": str(tmp_path / "runs")}
        return load_config(None, TINY | places | (overrides or {}))

    return make
