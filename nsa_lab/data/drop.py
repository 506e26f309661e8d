"""A list of what is left out of annotations: JSONL, a line for each video, or row, with the reason."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsa_lab.config.schema import DataConfig
from nsa_lab.data.images import Video, first_file
from nsa_lab.data.rows import RowError, Sample
from nsa_lab.errors import NsaLabError, short
from nsa_lab.files import digest, whole


@dataclass(frozen=True)
class Drop:
    """What `file` names: `videos` as `video_name` writes them, with all their rows, and rows by `row_digest`."""

    file: Path
    videos: frozenset[str]
    rows: frozenset[str]

    def names(self, row: Any, sample: Sample | RowError, videos: Path) -> bool:
        """Whether the row, or the video of its sample, is in the list; `videos` is the folder of all videos."""
        if isinstance(sample, Sample) and video_name(sample.video, videos) in self.videos:
            return True
        return bool(self.rows) and row_digest(row) in self.rows


def drop_of(data: DataConfig) -> Drop | None:
    """The list that data.drop names. Raises NsaLabError as `read_drop`."""
    return read_drop(Path(data.drop)) if data.drop else None


def read_drop(file: Path) -> Drop:
    """The list in `file`. Raises NsaLabError where there is none, or a line names neither a video nor a row."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise NsaLabError(
            f"data.drop={file} cannot be read ({error}); name a list of `nsa-lab data check`, or null for none"
        ) from error
    found = [_named(line, f"{file}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]
    by_key = {key: frozenset(name for named, name in found if named == key) for key in ("video", "row")}
    return Drop(file, by_key["video"], by_key["row"])


def _named(line: str, where: str) -> tuple[str, str]:
    remedy = 'write {"video": "a.mp4"}, or the line of `nsa-lab data check`'
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise NsaLabError(f"{where}: not JSON ({error}); {remedy}") from error
    key = "row" if isinstance(entry, Mapping) and "row" in entry else "video"
    if not isinstance(entry, Mapping) or not isinstance(entry.get(key), str):
        raise NsaLabError(f"{where}: {short(entry)} names no video and no row; {remedy}")
    return key, entry[key]


def write_drop(file: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Write a list; each of `entries` has `video` or `row`, and what a reader wants to know."""
    with whole(file) as unfinished:
        unfinished.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries), "utf-8")


def video_name(video: Video, videos: Path) -> str:
    """A video, or its first frame, as a list names it: relative to the folder `videos` where it is inside."""
    file = first_file(video)
    return (file.relative_to(videos) if file.is_relative_to(videos) else file).as_posix()


def row_digest(row: Any) -> str:
    """Twelve hex digits over a row as it was read, wherever it stands."""
    return digest(row.line if isinstance(row, RowError) else row)
