"""How many tokens each sample has, known without decoding its video, and kept from one run to the next."""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nsa_lab.config.schema import DataConfig
from nsa_lab.data.annotations import Samples
from nsa_lab.data.chat import encode_chat
from nsa_lab.data.errors import SKIPPED, BadSampleError, check_length, refuse_most
from nsa_lab.data.pixels import smart_resize
from nsa_lab.data.rows import Sample
from nsa_lab.data.video import read_shape
from nsa_lab.files import locked
from nsa_lab.layout import FRAMES_PER_PATCH, TOKEN_PIXELS

Shape = tuple[int, int, int]
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


def _length(sample: Sample, shape: Shape | BadSampleError, tokenizer: Any, config: DataConfig, most: int) -> int:
    if isinstance(shape, BadSampleError):
        raise shape
    frames, height, width = shape
    tall, wide = smart_resize(height, width, config.min_pixels, config.max_pixels)
    video = -(-frames // FRAMES_PER_PATCH) * (tall // TOKEN_PIXELS) * (wide // TOKEN_PIXELS)
    system = config.system_prompt if sample.system is None else sample.system
    length = video + len(encode_chat(sample.turns, 0, tokenizer, system).input_ids)
    limits = {"data.max_tokens": config.max_tokens, "training.tokens_per_batch": most}
    check_length(length, (frames, tall, wide), limits)
    return length


def _leave_out(good: Samples, bad: Sequence[BadSampleError], count: int) -> None:
    logger.warning(SKIPPED, bad[0])
    counts = Counter(error.kind for error in bad)
    refuse_most(counts, count, bad[-1])
    good.skipped = dict(counts + Counter(good.skipped))


def _shapes(videos: Iterable[Path], config: DataConfig) -> dict[Path, Shape | BadSampleError]:
    """Frames, height and width that are sampled of each video, or why it cannot be read."""
    place = Path(config.cache_dir)
    place.mkdir(parents=True, exist_ok=True)
    file = place / FILE
    with locked(place / f"{FILE}.lock", f"another process measures videos for {file}; waiting"):
        known = _read(file)
        keys = {video: _key(video, config) for video in sorted(videos)}
        missing = [video for video, key in keys.items() if key not in known]
        if len(missing) > THREADS:
            logger.warning("measuring %d videos for training.tokens_per_batch; kept in %s", len(missing), file)
        found: dict[Path, Shape | BadSampleError] = {v: known[key] for v, key in keys.items() if key in known}
        with open(file, "a") as kept, ThreadPoolExecutor(THREADS) as pool:
            for video, shape in zip(missing, pool.map(lambda v: _shape(v, config), missing), strict=True):
                found[video] = shape
                if not isinstance(shape, BadSampleError):
                    kept.write(json.dumps([keys[video], shape]) + "\n")
    return found


def _shape(video: Path, config: DataConfig) -> Shape | BadSampleError:
    try:
        return read_shape(video, config.fps, config.max_frames)
    except BadSampleError as error:
        return error


def _key(video: Path, config: DataConfig) -> str:
    """A video file as it is now, and how it is sampled."""
    try:
        now = os.stat(video)
        return f"{video.resolve()} {now.st_size} {now.st_mtime_ns} {config.fps} {config.max_frames}"
    except OSError:
        return str(video)  # which is not kept


def _read(file: Path) -> dict[str, Shape]:
    """What was measured before; a line that was cut off with its process is none."""
    lines = file.read_text().splitlines() if file.exists() else []
    known = {}
    for line in lines:
        try:
            key, (frames, height, width) = json.loads(line)
        except ValueError:
            continue
        known[key] = (frames, height, width)
    return known
