"""A video file to frames: PyAV decoding and frame sampling by true timestamps."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from nsa_lab.data.container import REMEDY, video_file
from nsa_lab.data.errors import BadSampleError


@dataclass(frozen=True)
class Clip:
    """Sampled frames [F, 3, H, W] uint8 RGB and their presentation times in the file, [F] float64 seconds."""

    frames: Tensor
    seconds: Tensor


def read_clip(path: Path, fps: float, max_frames: int, transform: Callable[[Tensor], Tensor] | None = None) -> Clip:
    """The frames shown at each 1/fps second, at most `max_frames` of them, spread evenly.

    At each tick the frame at or before it is taken, and none is taken twice, so a video slower than `fps` gives all
    its frames. `transform` ([1, 3, H, W] to [1, 3, H', W'], uint8) is applied frame by frame, to keep a long video
    small. Raises BadSampleError where the file is not a readable video or ends early.
    """
    stamps, time_base = _timestamps(path)
    seconds = stamps.astype(np.float64) * time_base
    chosen = _sample(seconds, fps, max_frames, tolerance=0.51 * time_base)
    frames = _decode(path, stamps[chosen], transform)
    return Clip(frames, torch.from_numpy(seconds[chosen]))


def _sample(seconds: np.ndarray, fps: float, max_frames: int, tolerance: float) -> np.ndarray:
    """Indices into the sorted times `seconds`; `tolerance` absorbs the rounding of stored timestamps."""
    ticks = np.arange(int((seconds[-1] - seconds[0] + tolerance) * fps) + 1) / fps + seconds[0]
    shown = np.unique(np.searchsorted(seconds, ticks + tolerance, side="right") - 1)
    # An even cap, so that the cap itself never leaves half a temporal patch.
    cap = max(1, max_frames - max_frames % 2)
    if len(shown) > cap:
        shown = shown[np.linspace(0, len(shown) - 1, cap).round().astype(int)]
    return shown


def _timestamps(path: Path) -> tuple[np.ndarray, float]:
    """Sorted timestamps of all frames, in units of the time base (seconds), read without decoding."""
    with video_file(path) as (container, stream):
        stamps = {packet.pts for packet in container.demux(stream) if packet.size and not packet.is_discard}
        if not stamps:
            raise BadSampleError(f"video {path} holds no frames; {REMEDY}")
        if None in stamps:
            raise BadSampleError(f"video {path} stores no presentation times; {REMEDY}")
        return np.array(sorted(stamps), dtype=np.int64), float(stream.time_base)


def _decode(path: Path, stamps: np.ndarray, transform: Callable[[Tensor], Tensor] | None) -> Tensor:
    wanted = set(stamps.tolist())
    frames: dict[int, Tensor] = {}
    size = None
    # One reformatter for all frames: frame.to_ndarray alone sets up a new converter, ten times slower.
    reformatter = VideoReformatter()
    with video_file(path) as (container, stream):
        for frame in container.decode(stream):
            if frame.pts not in wanted:
                continue
            if frame.is_corrupt:
                raise BadSampleError(f"video {path} is damaged at {frame.time:.2f} s; {REMEDY}")
            size = size or (frame.width, frame.height)
            rgb = reformatter.reformat(frame, *size, format="rgb24")
            image = torch.from_numpy(rgb.to_ndarray()).permute(2, 0, 1)[None].contiguous()
            frames[frame.pts] = transform(image) if transform else image
            if len(frames) == len(wanted):
                break
    if len(frames) < len(wanted):
        raise BadSampleError(f"video {path} ends early: {len(frames)} of {len(wanted)} frames decode; {REMEDY}")
    return torch.cat([frames[stamp] for stamp in stamps.tolist()])
