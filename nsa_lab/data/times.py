"""When each frame of a video file is shown, read without decoding, and whether the file holds all it tells of."""

import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nsa_lab.data.container import REMEDY, video_file
from nsa_lab.data.errors import BadSampleError
from nsa_lab.data.extent import told_bytes

LONGEST_STILL_S = 3600.0
"""A longer time between two frames is taken for a broken time stamp."""

MISSING_SHARE = 0.1
"""How much of its duration a header may tell beyond the last packet: real ones differ by some frames."""

# Formats by FFmpeg's name. Their packets have one time each, in the order of storage; FFmpeg makes up the other.
ONE_TIME_EACH = ("avi", "asf", "matroska,webm")
# A time now and then, and frames at a fixed rate between them; or times that may start anew.
BROADCAST = ("mpeg", "mpegts")
FIXED_RATE = ("mpeg",)
# A header that tells the video's own duration, or the file's alone; elsewhere FFmpeg estimates one.
TELLS_OWN_DURATION = ("mov,mp4,m4a,3gp,3g2,mj2", "avi")
TELLS_DURATION = (*TELLS_OWN_DURATION, "matroska,webm", "flv", "asf", "mxf")


@dataclass(frozen=True)
class FrameTimes:
    """Ascending time stamps [N] int64, one a frame, of `unit` seconds each.

    `counted`: the n-th frame that the decoder gives has the n-th stamp. Else frames bring their stamps.
    """

    stamps: np.ndarray
    unit: float
    counted: bool

    @property
    def seconds(self) -> np.ndarray:
        """The times [N] float64."""
        return self.stamps.astype(np.float64) * self.unit


class _Times(NamedTuple):
    """Of one video packet."""

    pts: int | None
    dts: int | None
    key: bool
    discard: bool


@dataclass(frozen=True)
class _Packets:
    """What the demuxer told: stamps of the video's packets in order of storage, and where packets end, in seconds."""

    pts: list[int | None]
    dts: list[int]
    video_end: float
    last_end: float


def read_times(path: Path) -> FrameTimes:
    """The presentation times of the file's frames.

    Raises BadSampleError where the file was cut off, is damaged, ends long before its header says, holds no frames or
    no times, or where its times go back or stand still for longer than an hour.
    """
    with video_file(path) as (container, stream):
        _check_bytes(path)
        packets = _read_packets(path, container, stream)
        if not packets.pts:
            raise BadSampleError(f"video {path} holds no frames; {REMEDY}")
        times = _frame_times(path, container.format.name, stream, packets)
        _check_end(path, container, stream, packets, times)
    _check_gaps(path, times)
    return times


def _check_bytes(path: Path) -> None:
    told, held = told_bytes(path), os.path.getsize(path)
    if told is not None and told > held:
        raise BadSampleError(
            f"video {path} was cut off: {held} of {told} bytes are there; fetch it again,"
            " or leave it out (data.on_bad_sample=skip)"
        )


def _read_packets(path: Path, container: Any, stream: Any) -> _Packets:
    video: list[_Times] = []
    video_end = last_end = 0.0
    for packet in container.demux(stream, *container.streams.audio):
        if not packet.size:
            continue
        if packet.pts is not None:
            last_end = max(last_end, _end(packet))
        if packet.stream is stream:
            video_end = last_end if packet.pts is None else max(video_end, _end(packet))
            video.append(_Times(packet.pts, packet.dts, packet.is_keyframe, packet.is_discard))
        if packet.stream is stream and packet.is_corrupt:
            raise BadSampleError(f"video {path} is damaged at frame {len(video)}; {REMEDY}")
    video = _decodable(video)
    shown = [times.pts for times in video if not times.discard]
    return _Packets(shown, [times.dts for times in video if times.dts is not None], video_end, last_end)


def _end(packet: Any) -> float:
    """In seconds."""
    return float((packet.pts + (packet.duration or 0)) * packet.time_base)


def _decodable(video: list["_Times"]) -> list["_Times"]:
    """Without what stands before the first key frame or is shown before it, as where a broadcast is joined."""
    first = next((at for at, times in enumerate(video) if times.key), 0)
    start = video[first].pts if video else None
    return [times for times in video[first:] if times.pts is None or start is None or times.pts >= start]


def _frame_times(path: Path, form: str, stream: Any, packets: _Packets) -> FrameTimes:
    unit, count = float(stream.time_base), len(packets.pts)
    known = [stamp for stamp in packets.pts if stamp is not None]
    if form in BROADCAST and any(later < earlier for earlier, later in pairwise(packets.dts)):
        return _at_fixed_rate(path, form, stream, count)
    if form in FIXED_RATE and len(known) < count:
        return _at_fixed_rate(path, form, stream, count)
    ascending = all(earlier < later for earlier, later in pairwise(known))
    made_up = form in ONE_TIME_EACH and ascending and stream.codec_context.has_b_frames
    if len(known) == count and not made_up:
        return FrameTimes(np.array(sorted(set(known)), dtype=np.int64), unit, counted=False)
    stored = packets.dts if len(packets.dts) == count else known
    if len(stored) < count:
        raise BadSampleError(f"video {path} stores no presentation times; {REMEDY}")
    return FrameTimes(np.array(sorted(stored), dtype=np.int64), unit, counted=True)


def _at_fixed_rate(path: Path, form: str, stream: Any, count: int) -> FrameTimes:
    rate = stream.codec_context.framerate or stream.average_rate
    if form not in FIXED_RATE or not rate:
        raise BadSampleError(f"the times of video {path} go back; {REMEDY}")
    return FrameTimes(np.arange(count, dtype=np.int64), float(1 / rate), counted=True)


def _check_end(path: Path, container: Any, stream: Any, packets: _Packets, times: FrameTimes) -> None:
    """The video's own duration is asked of its packets, the file's of the packets of all its streams."""
    if container.format.name not in TELLS_DURATION:
        return
    if stream.duration and container.format.name in TELLS_OWN_DURATION:
        told, end = float(stream.duration * stream.time_base), packets.video_end
    elif container.duration:
        told, end = container.duration / 1e6, packets.last_end
    else:
        return
    first = float(times.seconds[0])
    held = end - min(0.0, first)
    frame = (float(times.seconds[-1]) - first) / max(1, len(times.stamps) - 1)
    if told - held > max(MISSING_SHARE * told, 2 * frame):
        raise BadSampleError(
            f"video {path} ends early: at {held:.2f} s of the {told:.2f} s that its header tells; {REMEDY}"
        )


def _check_gaps(path: Path, times: FrameTimes) -> None:
    seconds = times.seconds
    gaps = np.diff(seconds)
    if len(gaps) and gaps.max() > LONGEST_STILL_S:
        at = int(gaps.argmax())
        raise BadSampleError(
            f"the times of video {path} jump by {gaps[at]:.0f} s after {seconds[at] - seconds[0]:.2f} s; {REMEDY}"
        )
