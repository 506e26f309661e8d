"""Videos looked at: their shape, whether they decode, and what decoding takes."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from nsa_lab.config.schema import DataConfig
from nsa_lab.data.errors import BadSampleError
from nsa_lab.data.images import Video
from nsa_lab.data.ledger import Ledger, video_key
from nsa_lab.data.lengths import is_kept
from nsa_lab.data.pixels import resize
from nsa_lab.data.processes import in_processes
from nsa_lab.data.video import Shape, read_clip, read_shape

DIED = "video {} ended the process that read it, twice; re-encode the file, or leave it out (data.on_bad_sample=skip)"
OnProgress = Callable[[int, int, int], None]
"""Told how many videos are done, of how many, and how many of them cannot be read."""


class Look(NamedTuple):
    """What was seen of a video that can be read.

    decode_s: processor seconds, of all threads, of reading and resizing its frames as a training does; None: it was not
    decoded, so that damage in its frames is not seen.
    """

    shape: Shape
    decode_s: float | None


def look_at(video: Video, data: DataConfig, decode: bool) -> Look | str:
    """What is seen of a video, or why it cannot be used."""
    try:
        shape = read_shape(video, data.fps)
        return Look(shape, _decode_seconds(video, data) if decode and is_kept(shape, data) else None)
    except BadSampleError as error:
        return str(error)


def _decode_seconds(video: Video, data: DataConfig) -> float:
    def fit(image: Tensor) -> Tensor:
        return resize(image, data.min_pixels, data.max_pixels)[..., :1, :1]

    before = time.process_time()
    read_clip(video, data.fps, data.max_frames, fit)
    return time.process_time() - before


def look_at_all(
    videos: Sequence[Video],
    data: DataConfig,
    ledger: Ledger,
    workers: int,
    decode: bool,
    on_progress: OnProgress | None = None,
) -> dict[Video, Look | str]:
    """What is seen of each video, or why it cannot be used, found on `workers` processes.

    With `decode` those are decoded that data.fewest_frames and data.most_frames keep. What can be read is kept in
    `ledger`, and not looked at again while the file, data.fps and data.max_frames stay.
    """
    keys = {video: video_key(video, data.fps, data.max_frames) for video in videos}
    known = {video: _stored(*ledger.known[key]) for video, key in keys.items() if key in ledger.known}
    seen: dict[Video, Look | str] = {
        video: look
        for video, look in known.items()
        if look.decode_s is not None or not decode or not is_kept(look.shape, data)
    }
    left, bad = [video for video in videos if video not in seen], 0
    say = on_progress or (lambda *_: None)
    say(len(seen), len(videos), bad)
    for video, found in in_processes(functools.partial(look_at, data=data, decode=decode), left, workers):
        seen[video] = DIED.format(video) if found is None else found
        bad += not isinstance(found, Look)
        if isinstance(found, Look) and (key := keys[video]):
            ledger.add(key, found)
        say(len(seen), len(videos), bad)
    return {video: seen[video] for video in videos}


def _stored(shape: tuple[int, int, int, float], decode_s: float | None) -> Look:
    return Look(Shape(*shape), decode_s)
