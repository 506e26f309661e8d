import json

import numpy as np
import pytest
import torch

from nsa_lab.config import load_config
from nsa_lab.tasks.encode import write_video
from nsa_testing import TINY


@pytest.fixture
def tiny(clips, tmp_path):
    """Makes configs of runs that take about a second; keyword `overrides` are dotted keys."""
    torch.set_num_threads(1)

    def make(overrides=None):
        places = {"data.cache_dir": str(clips), "output.dir": str(tmp_path / "runs")}
        return load_config(None, TINY | places | (overrides or {}))

    return make


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """Twelve clips whose answers have 1 and 40 words in turn."""
    folder = tmp_path_factory.mktemp("rows")
    found = []
    for i in range(12):
        frames = (np.full((56, 56, 3), (20 * i + 10 * f) % 250, np.uint8) for f in range(6))
        write_video(folder / f"{i}.mp4", frames, 2.0)
        talk = [
            {"from": "human", "value": "what colour?"},
            {"from": "gpt", "value": " ".join(["red"] * (40 if i % 2 else 1))},
        ]
        found.append({"id": str(i), "video": f"{i}.mp4", "conversations": talk})
    (folder / "rows.json").write_text(json.dumps(found))
    return folder


@pytest.fixture
def uneven(tiny, rows):
    """Configs whose answers have 1 and 40 words in turn; two micro-batches a step for each of two processes."""

    def make(**overrides):
        given = {
            "tasks.needle.enabled": False,
            "data.annotations": str(rows / "rows.json"),
            "data.videos": str(rows),
            "training.steps": 2,
            "training.val_every": 2,
            "training.batch_size": 1,
            "training.accumulate": 4,
            "training.accelerator": "cpu",
            "training.threads": 1,
        }
        return tiny(given | overrides)

    return make
