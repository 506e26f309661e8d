"""Frames to an H.264 file that appears whole or not at all."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from nsa_lab.files import whole

OPTIONS = {"preset": "ultrafast", "crf": "23", "threads": "1"}


def write_video(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Write frames, each [H, W, 3] uint8 RGB with H and W even, as an mp4 at `fps` frames per second."""
    with whole(path) as unfinished, av.open(str(unfinished), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options=OPTIONS)
        stream.pix_fmt = "yuv420p"
        for number, image in enumerate(frames):
            if number == 0:
                stream.height, stream.width = image.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
