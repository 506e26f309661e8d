"""The samples an experiment trains and validates on: task clips, or a user's annotations and videos."""

import hashlib
import logging
from pathlib import Path

from nsa_lab.config.rules import enabled_tasks, shown_frames
from nsa_lab.config.schema import ExperimentConfig
from nsa_lab.data.annotations import Samples, read_annotations
from nsa_lab.data.drop import drop_of, video_name
from nsa_lab.data.images import Video
from nsa_lab.data.lengths import kept
from nsa_lab.tasks import task_settings
from nsa_lab.tasks.clips import ensure_clips

logger = logging.getLogger(__name__)

HELD_OUT_PERCENT = 10


def load_samples(config: ExperimentConfig) -> dict[str, Samples]:
    """The samples by split, `train` and `val`. Missing task clips are written first.

    Without data.val_annotations a fixed tenth of the videos is held out for `val`, and rows that were left out count
    as `train`. Raises NsaLabError on broken annotations.
    """
    return _annotated(config) if config.data.annotations else _tasks(config)


def _tasks(config: ExperimentConfig) -> dict[str, Samples]:
    samples = {"train": Samples(), "val": Samples()}
    for name in enabled_tasks(config):
        for split, found in task_samples(config, name).items():
            samples[split] += found
    return samples


def task_samples(config: ExperimentConfig, name: str) -> dict[str, Samples]:
    """The samples of task `name` by split, with the dials of `config`, whether or not it is enabled there."""
    _warn_of_unseen_frames(name, config)
    files = ensure_clips(name, config.tasks, Path(config.data.cache_dir))
    return {split: read_annotations(file, file.parent) for split, file in files.items()}


def _warn_of_unseen_frames(name: str, config: ExperimentConfig) -> None:
    frames = task_settings(config.tasks, name).frames
    shown = shown_frames(config, frames)
    if shown < frames:
        logger.warning(
            "only %d of the %d frames of a %s clip are shown, events may be missed;"
            " raise data.fps to tasks.fps and data.max_frames to the clip's length",
            shown,
            frames,
            name,
        )


def file_samples(config: ExperimentConfig, path: str | Path, videos: str | Path | None = None) -> Samples:
    """All samples of an annotation file, read as `config.data` says; `videos` stands in for data.videos."""
    data = config.data
    folder = Path(videos or data.videos or ".")
    return read_annotations(
        Path(path),
        folder,
        skip=data.on_bad_sample == "skip",
        absolute=data.absolute_videos,
        drop=drop_of(data),
    )


def _annotated(config: ExperimentConfig) -> dict[str, Samples]:
    data = config.data
    samples = kept(file_samples(config, data.annotations or ""), data)
    if data.val_annotations:
        return {"train": samples, "val": file_samples(config, data.val_annotations)}
    return _hold_out(samples, Path(data.videos or "."))


def _hold_out(samples: Samples, videos: Path) -> dict[str, Samples]:
    """A tenth of the videos, by the hash of their relative path, so that no video stands in both splits."""
    ranked = sorted({sample.video for sample in samples}, key=lambda video: _digest(video, videos))
    count = max(1, len(ranked) * HELD_OUT_PERCENT // 100) if len(ranked) > 1 else 0
    held_out = set(ranked[:count])
    logger.warning("data.val_annotations is not set: %d of %d videos are held out for validation", count, len(ranked))
    return {
        "train": Samples((sample for sample in samples if sample.video not in held_out), samples.skipped),
        "val": Samples(sample for sample in samples if sample.video in held_out),
    }


def _digest(video: Video, videos: Path) -> str:
    return hashlib.sha256(video_name(video, videos).encode()).hexdigest()
