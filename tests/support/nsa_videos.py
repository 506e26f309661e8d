"""Videos as people have them, for tests: every container, with sound, late, jumping, turned, cut."""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

FRAMES = 40
STEP = 6
"""Frame n of a written video is evenly grey, of brightness STEP * n."""

B_FRAMES = {"bf": "3", "b": "5M"}
CONTAINERS = {
    "clip.mp4": ("libx264", {}),
    "clip.mov": ("libx264", {}),
    "clip.mkv": ("libx264", {}),
    "clip.avi": ("libx264", {}),
    "xvid.avi": ("mpeg4", B_FRAMES),
    "clip.ts": ("libx264", {}),
    "tv.ts": ("mpeg2video", B_FRAMES),
    "dvd.mpeg": ("mpeg2video", B_FRAMES),
    "vcd.mpg": ("mpeg1video", B_FRAMES),
    "clip.mpeg": ("libx264", {}),
    "clip.flv": ("libx264", {}),
    "clip.wmv": ("libx264", {}),
    "hevc.mp4": ("libx265", {"x265-params": "log-level=none"}),
    "clip.webm": ("libvpx-vp9", {"cpu-used": "8", "deadline": "realtime"}),
    "old.webm": ("libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
    "clip.gif": ("gif", {}),
}
"""A name of each kind of file that has reordered frames, or is common; its codec and the codec's options."""


def write(
    path: Path,
    codec: str = "libx264",
    codec_options: dict[str, str] | None = None,
    *,
    options: dict[str, str] | None = None,
    times: Sequence[int] = range(FRAMES),
    time_base: Fraction = Fraction(1, 30),
    size: tuple[int, int] = (64, 64),
    pixels: str = "yuv420p",
    audio_s: float = 0.0,
    noise: bool = False,
) -> Path:
    """A video with a frame at each of `times`, in units of `time_base` seconds, `size` as (width, height)."""
    random = np.random.default_rng(0).integers(0, 200, (8, size[1], size[0], 3), dtype=np.uint8)
    with av.open(str(path), "w", options=options or {}) as container:
        stream: Any = container.add_stream(codec, rate=30, options=codec_options or {})
        stream.width, stream.height = size
        stream.pix_fmt = "rgb8" if codec == "gif" else pixels
        stream.codec_context.time_base = time_base
        sound: Any = container.add_stream("mp2", rate=48000) if audio_s else None
        for number, time in enumerate(times):
            grey = np.full((size[1], size[0], 3), STEP * number % 250, np.uint8)
            frame = av.VideoFrame.from_ndarray(random[number % 8] if noise else grey, format="rgb24")
            frame.pts, frame.time_base = time, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        for number in range(int(audio_s * 48000 / 1152)):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.int16), format="s16", layout="mono")
            silence.sample_rate, silence.pts, silence.time_base = 48000, 1152 * number, Fraction(1, 48000)
            container.mux(sound.encode(silence))
        container.mux(sound.encode() if sound else [])
    return path


def frame_numbers(frames: torch.Tensor) -> list[int]:
    """Which frames of a written video [F, 3, H, W] are."""
    return [round(value / STEP) for value in frames.float().mean((1, 2, 3)).tolist()]


def set_display_matrix(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Write (a, b, c, d), by which (x, y) is shown at (a x + c y, b x + d y), into an mp4's track header."""
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 44
    a, b, c, d = (round(value * (1 << 16)) for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(data))
    return path


def set_mkv_seconds(path: Path, seconds: float) -> Path:
    """Change the duration that an mkv's header tells."""
    data = bytearray(path.read_bytes())
    at = data.find(b"\x44\x89\x88") + 3
    data[at : at + 8] = struct.pack(">d", 1000 * seconds)
    path.write_bytes(bytes(data))
    return path
