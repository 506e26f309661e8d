"""Annotations and their videos looked at before a training: what cannot be used, and how long all else is."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsa_lab.config.schema import DataConfig, ExperimentConfig
from nsa_lab.data.annotations import parsed_rows
from nsa_lab.data.drop import drop_of, row_digest, video_name, write_drop
from nsa_lab.data.errors import BAD_ROW, MISSING, UNREADABLE, BadSampleError, check_length
from nsa_lab.data.images import Video, first_file
from nsa_lab.data.ledger import open_ledger, video_key
from nsa_lab.data.lengths import is_kept, remember, sample_tokens
from nsa_lab.data.look import Look, OnProgress, look_at_all
from nsa_lab.data.rows import RowError, Sample
from nsa_lab.data.tokenizer import load_tokenizer
from nsa_lab.errors import NsaLabError
from nsa_lab.files import writing

LEDGER, DROP = "videos.jsonl", "drop.jsonl"
Row = tuple[str, Any, Sample | RowError]
"""Where a row stands, the row as it was read, and its sample or its fault."""


@dataclass(frozen=True)
class Good:
    """A row that can be used: its group (`task`), how many questions, its video, and its tokens, video and text."""

    group: str
    questions: int
    video: Video
    tokens: int


@dataclass(frozen=True)
class Check:
    """What was found of all rows but those in data.drop; `good` are those that can be used.

    looks: what was seen of each video that can be read. drop: a line for each video or row that cannot be used, with
    `kind` and `reason`; lost: how many rows that are, by kind. outside: how many rows data.fewest_frames and
    data.most_frames leave out.
    """

    good: list[Good]
    looks: dict[Video, Look]
    drop: list[dict[str, str]]
    lost: dict[str, int]
    outside: int


def check(
    config: ExperimentConfig,
    out: str | Path,
    *,
    workers: int = 1,
    decode: bool = True,
    on_progress: OnProgress | None = None,
) -> Check:
    """Look at data.annotations and every video in them, as a training with `config` would.

    With `decode` each video is decoded as far as it would be shown; without, its header and times are read alone. The
    folder `out` gets DROP, a list for data.drop, and LEDGER, by which the same call goes on where it was ended: a video
    is looked at again where its file changed, data.fps or data.max_frames did, or it could not be read. A training
    that needs to know lengths finds them in data.cache_dir. `on_progress` is told at first and after each video how
    many are done, of how many, and how many of them cannot be read. Raises NsaLabError where the annotations, the
    folder of videos or the tokenizer cannot be read, nothing can be written, or the list would take the place of
    data.drop.
    """
    data, out = config.data, Path(out)
    if data.drop and Path(data.drop).resolve() == (out / DROP).resolve():
        raise NsaLabError(f"data.drop={data.drop} is the list that would be written; give another --out")
    tokenizer = load_tokenizer(data.tokenizer, Path(data.cache_dir))
    rows = list(_rows(data))
    named = {sample.video for _, _, sample in rows if isinstance(sample, Sample)}
    if data.videos and not Path(data.videos).is_dir():
        raise NsaLabError(f"the folder of videos {data.videos} does not exist; correct data.videos (--videos)")
    videos = sorted((video for video in named if os.path.isfile(first_file(video))), key=str)
    keys = {video: video_key(video, data.fps) for video in videos}
    with open_ledger(out / LEDGER, f"another process checks into {out}; waiting") as ledger:
        seen = look_at_all(videos, data, ledger, workers, decode, on_progress)
        found = _judged(config, rows, seen, tokenizer)
        with writing(out / DROP, "make room and run the same command again"):
            write_drop(out / DROP, found.drop)
    remember({key: look.shape for video, look in found.looks.items() if (key := keys[video])}, data)
    return found


def _rows(data: DataConfig) -> Iterator[Row]:
    """All rows but those in data.drop."""
    videos = Path(data.videos or ".")
    drop = drop_of(data)
    for place, row, sample in parsed_rows(Path(data.annotations or ""), videos, data.absolute_videos):
        if drop is None or not drop.names(row, sample, videos):
            yield place, row, sample


def _judged(config: ExperimentConfig, rows: Iterable[Row], seen: Mapping[Video, Look | str], tokenizer: Any) -> Check:
    good, drop, lost, outside = [], {}, Counter[str](), 0
    for place, row, sample in rows:
        look = seen.get(sample.video) if isinstance(sample, Sample) else None
        if isinstance(look, Look) and not is_kept(look.shape, config.data):
            outside += 1
            continue
        try:
            good.append(_good(sample, look, tokenizer, config))
        except BadSampleError as error:
            lost[error.kind] += 1
            line = _line(place, row, sample, error, Path(config.data.videos or "."))
            drop[line.get("row", line.get("video"))] = line
    looks = {video: look for video, look in seen.items() if isinstance(look, Look)}
    return Check(good, looks, list(drop.values()), dict(lost), outside)


def _good(sample: Sample | RowError, look: Look | str | None, tokenizer: Any, config: ExperimentConfig) -> Good:
    if isinstance(sample, RowError):
        raise BadSampleError(str(sample), BAD_ROW)
    if look is None:
        raise BadSampleError(f"{sample.video} is no file", MISSING)
    if isinstance(look, str):
        raise BadSampleError(look)
    tokens, frames = sample_tokens(sample, look.shape, tokenizer, config.data)
    budget = config.training.tokens_per_batch
    limits = {"data.max_tokens": config.data.max_tokens} | ({"training.tokens_per_batch": budget} if budget else {})
    check_length(tokens, frames, limits)
    return Good(sample.task, len(sample.turns), sample.video, tokens)


def _line(place: str, row: Any, sample: Sample | RowError, error: BadSampleError, videos: Path) -> dict[str, str]:
    """The line of a list for data.drop: a video's where that is to blame, else the row's."""
    why = {"kind": error.kind, "reason": str(error)}
    if isinstance(sample, RowError):
        return {"row": row_digest(row), "place": place} | why
    video = {"video": video_name(sample.video, videos)}
    if error.kind in (MISSING, UNREADABLE):
        return video | why
    return {"row": row_digest(row), "place": place, "id": sample.id} | video | why
