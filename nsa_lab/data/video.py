"""A video file to frames: PyAV decoding and frame sampling by true timestamps."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from nsa_lab.data.container import REMEDY, video_file
from nsa_lab.data.errors import BadSampleError
from nsa_lab.data.images import FrameFiles, Video, read_image, read_images
from nsa_lab.data.orientation import Orientation, orientation
from nsa_lab.data.times import FrameTimes, read_times

Transform = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Clip:
    """Sampled frames [F, 3, H, W] uint8 RGB and their presentation times in the file, [F] float64 seconds."""

    frames: Tensor
    seconds: Tensor


def read_clip(path: Video, fps: float, max_frames: int, transform: Transform | None = None) -> Clip:
    """The frames shown at each 1/fps second, at most `max_frames` of them, spread evenly, the right way up.

    At each tick the frame at or before it is taken, and none is taken twice, so a video slower than `fps` gives all
    its frames. They are turned and mirrored as the display matrix says. `transform` ([1, 3, H, W] to [1, 3, H', W'],
    uint8) is applied frame by frame, to keep a long video small. Of frames that are images there is one at each 1/fps
    second. Raises BadSampleError where the file is not a readable video, was cut off, is damaged before the last frame
    asked for, or has no sane times.
    """
    if isinstance(path, FrameFiles):
        places = _spread(np.arange(len(path)), max_frames)
        return Clip(read_images(path, places, transform), torch.from_numpy(places / fps))
    times = read_times(path)
    chosen = _sample(times.seconds, fps, max_frames, tolerance=0.51 * times.unit)
    shown, frames = _decode(path, times, chosen.tolist(), transform)
    return Clip(frames, torch.from_numpy(times.seconds[shown]))


class Shape(NamedTuple):
    """A video as it is sampled: frames, uncapped, their height and width as shown, and the seconds of the video."""

    frames: int
    height: int
    width: int
    seconds: float


def read_shape(path: Video, fps: float) -> Shape:
    """What read_clip gives without a transform and a cap of frames, by decoding the first frame alone.

    The video's seconds count its last frame as long as the others are on average. Where a codec makes one frame of two
    packets read_clip may give fewer frames. Raises BadSampleError as that does, but for damage, which only decoding
    shows.
    """
    if isinstance(path, FrameFiles):
        height, width = read_image(path[0]).shape[-2:]
        return Shape(len(path), height, width, len(path) / fps)
    times = read_times(path)
    chosen = _ticked(times.seconds, fps, tolerance=0.51 * times.unit)
    for _, frame in _shown(path, times):
        height, width = _Converter(path, None)(frame).shape[-2:]
        span, steps = float(times.seconds[-1] - times.seconds[0]), len(times.stamps) - 1
        return Shape(len(chosen), height, width, span * (steps + 1) / steps if steps else 0.0)
    raise BadSampleError(f"video {path} ends early: 0 of {len(times.stamps)} frames decode; {REMEDY}")


def at_most(frames: int, max_frames: int) -> int:
    """How many of so many frames are shown: the cap is even, so that it never leaves half a temporal patch."""
    return min(frames, max(1, max_frames - max_frames % 2))


def _sample(seconds: np.ndarray, fps: float, max_frames: int, tolerance: float) -> np.ndarray:
    """Indices into the sorted times `seconds`; `tolerance` absorbs the rounding of stored timestamps."""
    return _spread(_ticked(seconds, fps, tolerance), max_frames)


def _spread(shown: np.ndarray, max_frames: int) -> np.ndarray:
    """At most `max_frames` of the frames `shown`, spread evenly."""
    cap = at_most(len(shown), max_frames)
    if cap < len(shown):
        shown = shown[np.linspace(0, len(shown) - 1, cap).round().astype(int)]
    return shown


def _ticked(seconds: np.ndarray, fps: float, tolerance: float) -> np.ndarray:
    """Indices of the frames that are shown at a tick, uncapped."""
    last_tick = int((seconds[-1] - seconds[0] + tolerance) * fps)
    first_ticks: np.ndarray = np.append(_first_ticks(seconds, fps, tolerance), last_tick + 1)
    return np.flatnonzero(np.diff(first_ticks) > 0)


def _first_ticks(seconds: np.ndarray, fps: float, tolerance: float) -> np.ndarray:
    """The number of the first tick at or after each of `seconds`, of which the first has tick 0.

    Memory goes with the frames: a list of all ticks would go with the times, which a file may set to anything.
    """
    ticks = np.maximum(np.floor((seconds - tolerance - seconds[0]) * fps) - 1, 0.0)
    for _ in range(3):  # rounding puts the guess at most this far before
        ticks += (ticks / fps + seconds[0]) + tolerance < seconds
    return ticks.astype(np.int64)


def _decode(path: Path, times: FrameTimes, wanted: list[int], transform: Transform | None) -> tuple[list[int], Tensor]:
    """The frames shown at the places `wanted` among the times: their own places, and [F, 3, H, W].

    Some codecs make one frame of two packets, or none of one; then the frame before is shown.
    """
    places: list[int] = []
    images: list[Tensor] = []
    convert = _Converter(path, transform)

    def keep(place: int, frame: "av.VideoFrame") -> None:
        if not places or places[-1] < place:
            places.append(place)
            images.append(convert(frame))

    before = None
    for place, frame in _shown(path, times):
        if before and wanted[0] < place:
            keep(*before)
            wanted = [want for want in wanted if want >= place]
        if wanted and wanted[0] == place:
            keep(place, frame)
            wanted = wanted[1:]
        if not wanted:
            break
        before = place, frame
    if wanted:
        held = before[0] + 1 if before else 0
        if len(times.stamps) - held > 1 or not before:
            raise BadSampleError(f"video {path} ends early: {held} of {len(times.stamps)} frames decode; {REMEDY}")
        keep(*before)
    return places, torch.cat(images)


def _shown(path: Path, times: FrameTimes) -> Iterator[tuple[int, "av.VideoFrame"]]:
    """(place among the times, frame) in the order shown. Raises BadSampleError at damage and lost frames."""
    place = -1
    with video_file(path) as (container, stream):
        for frame in container.decode(stream):
            now = place + 1 if times.counted else _place(frame.pts, times)
            if now < 0 or now == place:
                continue
            if frame.is_corrupt or now < place or now > place + 2 or now >= len(times.stamps):
                at = times.seconds[min(max(place, 0), len(times.stamps) - 1)]
                raise BadSampleError(f"video {path} is damaged at {at:.2f} s; {REMEDY}")
            place = now
            yield place, frame


def _place(pts: int | None, times: FrameTimes) -> int:
    return -1 if pts is None else int(np.searchsorted(times.stamps, pts, side="right")) - 1


class _Converter:
    """Frames to [1, 3, H, W] uint8, of the first one's size and orientation, transformed."""

    def __init__(self, path: Path, transform: Transform | None):
        self.path, self.transform = path, transform
        # One reformatter for all frames: frame.to_ndarray alone sets up a new converter, ten times slower.
        self.reformatter = VideoReformatter()
        self.shown: tuple[int, int, Orientation] | None = None

    def __call__(self, frame: "av.VideoFrame") -> Tensor:
        width, height, turn = self.shown = self.shown or (frame.width, frame.height, self._orientation(frame))
        rgb = self.reformatter.reformat(frame, width, height, format="rgb24")
        # Resized as it lies in memory, channels last, which takes half the time; copied once it is small.
        image = turn.apply(torch.from_numpy(rgb.to_ndarray()).permute(2, 0, 1)[None])
        return (self.transform(image) if self.transform else image).contiguous()

    def _orientation(self, frame: "av.VideoFrame") -> Orientation:
        try:
            return orientation(frame)
        except BadSampleError as error:
            raise BadSampleError(f"video {self.path} {error}") from error
