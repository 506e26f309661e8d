"""What a check of annotations found, in numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nsa_lab.data.check import Check, Good

QUANTILES = {"least": 0.0, "10%": 0.1, "median": 0.5, "90%": 0.9, "most": 1.0}
ALL = "all"


@dataclass(frozen=True)
class Group:
    """The rows of one `task` that can be used; hours are of its videos, each counted once."""

    group: str
    rows: int
    questions: int
    videos: int
    hours: float
    tokens: int


@dataclass(frozen=True)
class Decoding:
    """What decoding takes on one core, by processor time: seconds a video, videos and tokens of samples a second."""

    videos: int
    seconds: float
    per_second: float
    tokens_per_second: float

    def cores(self, tokens_per_second: float) -> float:
        """How many cores feed a training that reads so many tokens a second."""
        return tokens_per_second / self.tokens_per_second


def groups(found: Check) -> list[Group]:
    """Of each group, by name; where there are several, the last is all of them."""
    names = sorted({row.group for row in found.good})
    each = [_group(name, found, [row for row in found.good if row.group == name]) for name in names]
    return each if len(names) == 1 else [*each, _group(ALL, found, found.good)]


def _group(name: str, found: Check, rows: Sequence[Good]) -> Group:
    videos = {row.video for row in rows}
    hours = math.fsum(found.looks[video].shape.seconds for video in videos) / 3600
    questions, tokens = sum(row.questions for row in rows), sum(row.tokens for row in rows)
    return Group(name, len(rows), questions, len(videos), hours, tokens)


def sizes(found: Check) -> dict[str, list[float]]:
    """By what is counted: seconds and frames (before data.max_frames) of each video, tokens of each row."""
    shapes = [look.shape for look in found.looks.values()]
    return {
        "seconds of a video": [shape.seconds for shape in shapes],
        "frames at data.fps": [float(shape.frames) for shape in shapes],
        "tokens of a row": [float(row.tokens) for row in found.good],
    }


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Of at least one value, by name."""
    return dict(zip(QUANTILES, np.quantile(values, list(QUANTILES.values())).tolist(), strict=True))


def decoding(found: Check) -> Decoding | None:
    """What decoding took, None where nothing was decoded. Each row of a training decodes its video anew."""
    by_video = {video: look.decode_s for video, look in found.looks.items() if look.decode_s is not None}
    rows = [row for row in found.good if row.video in by_video]
    if not rows:
        return None
    seconds, taken = math.fsum(by_video.values()), math.fsum(by_video[row.video] for row in rows)
    rate = sum(row.tokens for row in rows) / taken
    return Decoding(len(by_video), seconds / len(by_video), len(by_video) / seconds, rate)


def as_plain(found: Check, facts: dict[str, Any]) -> dict[str, Any]:
    """All numbers for JSON, with `facts` of how they were found."""
    taken = decoding(found)
    return facts | {
        "lost": found.lost,
        "outside": found.outside,
        "groups": [vars(group) for group in groups(found)],
        "quantiles": {what: quantiles(values) for what, values in sizes(found).items() if values},
        "decoding": None if taken is None else vars(taken),
    }
