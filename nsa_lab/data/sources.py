"""The samples an experiment trains and validates on: task clips, or a user's annotations and videos."""

import hashlib
import logging
from pathlib import Path

from nsa_lab.config.rules import enabled_tasks
from nsa_lab.config.schema import ExperimentConfig
from nsa_lab.data.annotations import Sample, read_annotations
from nsa_lab.tasks.clips import ensure_clips

logger = logging.getLogger(__name__)

HELD_OUT_PERCENT = 10


def load_samples(config: ExperimentConfig) -> dict[str, list[Sample]]:
    """The samples by split, `train` and `val`. Missing task clips are written first.

    Without data.val_annotations a fixed tenth of the videos is held out for `val`. Raises NsaLabError on broken
    annotations.
    """
    return _annotated(config) if config.data.annotations else _tasks(config)


def _tasks(config: ExperimentConfig) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = {"train": [], "val": []}
    for name in enabled_tasks(config):
        _warn_of_unseen_frames(name, config)
        for split, annotations in ensure_clips(name, config.tasks, Path(config.data.cache_dir)).items():
            samples[split] += read_annotations(annotations, annotations.parent)
    return samples


def _warn_of_unseen_frames(name: str, config: ExperimentConfig) -> None:
    frames = enabled_tasks(config)[name].frames
    shown = min(int(frames * min(1.0, config.data.fps / config.tasks.fps)), config.data.max_frames)
    if shown < frames:
        logger.warning(
            "only %d of the %d frames of a %s clip are shown, events may be missed;"
            " raise data.fps to tasks.fps and data.max_frames to the clip's length",
            shown,
            frames,
            name,
        )


def _annotated(config: ExperimentConfig) -> dict[str, list[Sample]]:
    data = config.data
    videos, skip = Path(data.videos or "."), data.on_bad_sample == "skip"
    samples = read_annotations(Path(data.annotations or ""), videos, skip_missing=skip)
    if data.val_annotations:
        return {
            "train": samples,
            "val": read_annotations(Path(data.val_annotations), videos, skip_missing=skip),
        }
    return _hold_out(samples, videos)


def _hold_out(samples: list[Sample], videos: Path) -> dict[str, list[Sample]]:
    """A tenth of the videos, by the hash of their relative path, so that no video stands in both splits."""
    ranked = sorted({sample.video for sample in samples}, key=lambda video: _digest(video, videos))
    count = max(1, len(ranked) * HELD_OUT_PERCENT // 100) if len(ranked) > 1 else 0
    held_out = set(ranked[:count])
    logger.warning("data.val_annotations is not set: %d of %d videos are held out for validation", count, len(ranked))
    return {
        "train": [sample for sample in samples if sample.video not in held_out],
        "val": [sample for sample in samples if sample.video in held_out],
    }


def _digest(video: Path, videos: Path) -> str:
    path = video.relative_to(videos) if video.is_relative_to(videos) else video
    return hashlib.sha256(path.as_posix().encode()).hexdigest()
