import numpy as np
import pytest
import torch

from nsa_lab.analysis.look import LayerLook
from nsa_lab.analysis.view import Video, make_blocks
from nsa_lab.config import load_config
from nsa_lab.partition import partition_from_block_id, sparse_context
from nsa_testing import token_layout

GRID = (4, 2, 3)
TILES = torch.tensor([0, 1, 1, 0, 1, 1, 0, 1, 1, 0, 1, 1, 2, 2, 2, 3, 3, 3, 2, 2, 2, 3, 3, 3])
"""Of GRID: a tile of one column and one of two over two frames, then a tile for each row over two frames."""

SETTINGS = {
    "name": "pictures",
    "tasks.needle.enabled": True,
    "tasks.needle.frames": 8,
    "tasks.needle.train_clips": 6,
    "tasks.needle.val_clips": 3,
    "model.num_layers": 3,
    "model.hidden_size": 32,
    "model.intermediate_size": 64,
    "model.num_heads": 2,
    "model.num_kv_heads": 1,
    "model.vision_hidden_size": 32,
    "attention.partition.kind": "frame",
    "attention.partition.block_size": 4,
    "attention.branches.selection.block_count": 2,
    "attention.branches.window.size": 4,
    "attention.layers": {"0": {"method": "dense"}},
    "training.steps": 2,
    "training.batch_size": 3,
    "training.val_every": 2,
    "training.checkpoint_every": 2,
    "training.warmup_steps": 1,
    "training.threads": 1,
    "tracking.enabled": False,
}


@pytest.fixture
def make_config(clips, tmp_path):
    """Makes configs of runs that take about a second; `overrides` are dotted keys."""

    def make(overrides=None):
        places = {"data.cache_dir": str(clips), "output.dir": str(tmp_path / "runs")}
        return load_config(None, SETTINGS | places | (overrides or {}))

    return make


@pytest.fixture(scope="session")
def trained(clips, tmp_path_factory):
    """The directory of a run of two steps with a `frame` partition; layer 0 is dense."""
    from nsa_lab import train

    places = {"data.cache_dir": str(clips), "output.dir": str(tmp_path_factory.mktemp("runs"))}
    return train(load_config(None, SETTINGS | places), progress_bar=False).directory


@pytest.fixture
def tiles():
    """What a layer did with the permuted partition TILES of a video between texts, for two groups; no forward ran."""
    context = sparse_context(token_layout([(3, GRID, 5)]), "video")
    return LayerLook(
        context=context,
        partition=partition_from_block_id(TILES, context.cu_seqlens, "frame"),
        chosen=torch.tensor([[0, 3, -1], [1, -1, -1]]),
        scores=torch.tensor([[0.75, 0.25, 0.0, 0.0], [0.25, 0.75, 0.0, 0.0]]),
    )


@pytest.fixture
def blocks(tiles):
    return make_blocks(tiles, GRID)


@pytest.fixture
def video():
    """A video of GRID whose second half is bright, two frames a second."""
    images = np.zeros((4, 56, 84, 3), np.uint8)
    images[2:] = 200
    return Video("clip", images, np.arange(5) * 0.5, GRID, np.array([1.0, 0.2, 1.0]), (1.0,))
