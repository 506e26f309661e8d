"""How many tokens each sample has, known without decoding its video, and kept from one run to the next."""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from nsa_lab.config.schema import DataConfig
from nsa_lab.data.annotations import Samples
from nsa_lab.data.chat import MARKS, encode_chat
from nsa_lab.data.errors import SKIPPED, BadSampleError, check_length, refuse_most
from nsa_lab.data.images import Video
from nsa_lab.data.ledger import Ledger, open_ledger, video_key
from nsa_lab.data.pixels import smart_resize, vision_tokens
from nsa_lab.data.rows import Sample
from nsa_lab.data.video import Shape, at_most, read_shape
from nsa_lab.errors import NsaLabError

FILE = "video-shapes.jsonl"
THREADS = 16
logger = logging.getLogger("nsa_lab")


def measured(samples: Samples, tokenizer: Any, config: DataConfig, most: int) -> tuple[Samples, list[int]]:
    """The samples that can be used, and how many tokens each of them has at most, in the same order.

    A sample of more than `most` tokens cannot be used, nor one whose video cannot be read; such are refused by name, or
    with data.on_bad_sample=skip left out, told in a warning and counted. Shapes of videos are kept in data.cache_dir.
    Raises NsaLabError also where more than half would be left out.
    """
    shapes = _shapes({sample.video for sample in samples}, config)
    good, lengths, bad = Samples(skipped=samples.skipped), [], []
    for sample in samples:
        try:
            length = _length(sample, shapes[sample.video], tokenizer, config, most)
        except BadSampleError as error:
            bad.append(error.of(sample.id))
            if config.on_bad_sample == "error":
                raise bad[0] from error
        else:
            good.append(sample)
            lengths.append(length)
    if bad:
        _leave_out(good, bad, len(samples))
    return good, lengths


def is_kept(shape: Shape, config: DataConfig) -> bool:
    """Whether a video has data.fewest_frames to data.most_frames at data.fps."""
    return (config.fewest_frames or 0) <= shape.frames <= (config.most_frames or math.inf)


def kept(samples: Samples, config: DataConfig) -> Samples:
    """The samples whose videos have data.fewest_frames to data.most_frames; all where neither is set.

    How many are left out is told in a warning. A video that cannot be read is refused by name, or with
    data.on_bad_sample=skip left out and counted. Shapes of videos are kept in data.cache_dir. Raises NsaLabError where
    none remains.
    """
    if config.fewest_frames is None and config.most_frames is None:
        return samples
    shapes = _shapes({sample.video for sample in samples}, config)
    bad = [(s, shape) for s in samples if isinstance(shape := shapes[s.video], BadSampleError)]
    if bad and config.on_bad_sample == "error":
        sample, error = bad[0]
        raise error.of(sample.id) from error
    found = Samples(skipped=samples.skipped)
    found += [s for s in samples if isinstance(shape := shapes[s.video], Shape) and is_kept(shape, config)]
    if bad:
        _leave_out(found, [error.of(sample.id) for sample, error in bad], len(samples))
    span = f"{config.fewest_frames or 0} to {config.most_frames or 'any number of'} frames at {config.fps:g} a second"
    if not found:
        raise NsaLabError(f"no video of {len(samples)} samples has {span}; change data.fewest_frames or most_frames")
    logger.warning("%d of %d samples are kept, whose videos have %s", len(found), len(samples), span)
    return found


def _length(sample: Sample, shape: Shape | BadSampleError, tokenizer: Any, config: DataConfig, most: int) -> int:
    if isinstance(shape, BadSampleError):
        raise shape
    length, frames = sample_tokens(sample, shape, tokenizer, config)
    limits = {"data.max_tokens": config.max_tokens, "training.tokens_per_batch": most}
    check_length(length, frames, limits)
    return length


def sample_tokens(sample: Sample, shape: Shape, tokenizer: Any, config: DataConfig) -> tuple[int, tuple[int, int, int]]:
    """How many tokens the sample has at most, and frames, height and width of its video as it is shown.

    Raises BadSampleError where its text holds a reserved token, or its video is too narrow.
    """
    frames = at_most(shape.frames, config.max_frames)
    tall, wide = smart_resize(shape.height, shape.width, config.min_pixels, config.max_pixels)
    vision = vision_tokens(frames, tall, wide, config.frames_as)
    marked = sum(vision) + len(MARKS) * len(vision)
    system = config.system_prompt if sample.system is None else sample.system
    return marked + len(encode_chat(sample.turns, [], tokenizer, system).input_ids), (frames, tall, wide)


def _leave_out(good: Samples, bad: Sequence[BadSampleError], count: int) -> None:
    logger.warning(SKIPPED, bad[0])
    counts = Counter(error.kind for error in bad)
    refuse_most(counts, count, bad[-1])
    good.skipped = dict(counts + Counter(good.skipped))


def _shapes(videos: Iterable[Video], config: DataConfig) -> dict[Video, Shape | BadSampleError]:
    """Of each video its shape at data.fps, or why it cannot be read."""
    with _known_shapes(config) as ledger:
        keys = {video: video_key(video, config.fps) for video in sorted(videos, key=str)}
        found: dict[Video, Shape | BadSampleError] = {
            video: Shape(*ledger.known[key]) for video, key in keys.items() if key in ledger.known
        }
        missing = [video for video in keys if video not in found]
        if len(missing) > THREADS:
            logger.warning("measuring %d videos; kept in %s", len(missing), ledger.file)
        with ThreadPoolExecutor(THREADS) as pool:
            for video, shape in zip(missing, pool.map(lambda v: _shape(v, config), missing), strict=True):
                found[video] = shape
                if isinstance(shape, Shape) and (key := keys[video]):
                    ledger.add(key, shape)
    return found


def remember(shapes: Mapping[str, Shape], config: DataConfig) -> None:
    """Keep shapes of videos, by `video_key` with data.fps, so that no training with this data.cache_dir does it."""
    with _known_shapes(config) as ledger:
        for key in shapes.keys() - ledger.known.keys():
            ledger.add(key, shapes[key])


def _known_shapes(config: DataConfig) -> AbstractContextManager[Ledger]:
    file = Path(config.cache_dir) / FILE
    return open_ledger(file, f"another process measures videos for {file}; waiting")


def _shape(video: Video, config: DataConfig) -> Shape | BadSampleError:
    try:
        return read_shape(video, config.fps)
    except BadSampleError as error:
        return error
