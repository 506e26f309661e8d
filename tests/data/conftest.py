from pathlib import Path

import numpy as np
import pytest

from nsa_lab.tasks.encode import write_video


@pytest.fixture
def make_video(tmp_path):
    """Writes a video whose frame i is evenly grey, of brightness 10 * i (mod 250), and returns its path."""

    def make(name: str = "clip.mp4", frames: int = 8, width: int = 56, height: int = 56, fps: float = 2.0) -> Path:
        path = tmp_path / name
        images = (np.full((height, width, 3), 10 * number % 250, np.uint8) for number in range(frames))
        write_video(path, images, fps)
        return path

    return make
