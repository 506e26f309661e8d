"""Annotations to samples: LLaVA-Video-178K's `conversations` rows and `messages` rows, as a JSON array or JSONL."""

import codecs
import dataclasses
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nsa_lab.data.drop import Drop
from nsa_lab.data.errors import BAD_ROW, MISSING
from nsa_lab.data.images import first_file
from nsa_lab.data.rows import RowError, Sample, parse_row
from nsa_lab.errors import NsaLabError

ENDINGS = (".json", ".jsonl")
PEEK = 1 << 12

logger = logging.getLogger(__name__)


class Samples(list[Sample]):
    """Samples, and how many rows were left out because nothing can be made of them, by kind."""

    def __init__(self, samples: Iterable[Sample] = (), skipped: Mapping[str, int] | None = None):
        super().__init__(samples)
        self.skipped = dict(skipped or {})


def read_annotations(
    path: Path, videos: Path, *, skip: bool = False, absolute: bool = False, drop: Drop | None = None
) -> Samples:
    """The samples of an annotation file, or of all in a folder, in their order; `drop` leaves out what it names.

    Video paths are relative to the folder `videos`. Where `path` is a folder, they are looked for in the folder of
    `videos` that is called as the one of their file first: LLaVA-Video-178K has one for each subset.
    Raises NsaLabError naming the file, the row (counted from 1) or line, and the remedy. With `skip`, rows that are
    no sample and rows whose video file does not exist are left out, told in a warning and counted, unless none
    remains. `absolute` allows rows absolute paths; no other path may leave `videos`.
    """
    samples, places, faults, dropped = Samples(), [], [], 0
    for place, row, sample in parsed_rows(path, videos, absolute):
        if drop is not None and drop.names(row, sample, videos):
            dropped += 1
        elif isinstance(sample, Sample):
            samples.append(sample)
            places.append(place)
        elif skip:
            faults.append(f"{place}: {sample}")
        else:
            raise NsaLabError(f"{path}: {place}: {sample}, or leave such rows out with data.on_bad_sample=skip")
    if drop is not None and dropped:
        logger.warning("%s: %d rows are left out by data.drop=%s", path, dropped, drop.file)
    elif drop is not None and (drop.videos or drop.rows):
        logger.warning("%s: data.drop=%s names no row and no video of it", path, drop.file)
    if faults:
        count = f"{len(faults)} of {len(faults) + len(samples)} rows cannot be used"
        if not samples:
            raise NsaLabError(f"{path}: {count}; correct them; the first is {faults[0]}")
        logger.warning("%s: %s and are left out; the first is %s", path, count, faults[0])
        samples.skipped[BAD_ROW] = len(faults)
    if not samples and drop is not None and dropped:
        raise NsaLabError(f"{path}: data.drop={drop.file} names all {dropped} rows; correct the list")
    if not samples:
        raise NsaLabError(f"{path} holds no samples; write at least one row")
    return _existing(path, samples, places, videos, skip)


def parsed_rows(path: Path, videos: Path, absolute: bool = False) -> Iterator[tuple[str, Any, Sample | RowError]]:
    """(place, row, its sample or its fault) of every row of an annotation file, or of all in a folder.

    A row that is no JSON is itself the RowError. Raises NsaLabError where a file cannot be read at all.
    """
    for file in annotation_files(path):
        sub = file.parent.relative_to(path) if path.is_dir() else Path()
        for place, row in _read_rows(file):
            place = f"{file.relative_to(path)}: {place}" if path.is_dir() else place
            try:
                sample = parse_row(row, videos, absolute, default_id=place)
            except RowError as error:
                yield place, row, error
            else:
                yield place, row, _beside(sample, videos, sub)


def annotation_files(path: Path) -> list[Path]:
    """The file itself, or all JSON and JSONL files in a folder. Raises NsaLabError where it holds none."""
    if not path.is_dir():
        return [path]
    found = sorted(file for ending in ENDINGS for file in path.rglob(f"*{ending}") if file.is_file())
    if not found:
        raise NsaLabError(f"annotations {path} is a folder without a file *{' or *'.join(ENDINGS)}; correct the path")
    return found


def _beside(sample: Sample, videos: Path, sub: Path) -> Sample:
    """The sample with the video in folder `sub` of `videos`, where that is one."""
    if sub.parts and isinstance(sample.video, Path) and sample.video.is_relative_to(videos):
        own = videos / sub / sample.video.relative_to(videos)
        if os.path.isfile(own):
            return dataclasses.replace(sample, video=own)
    return sample


def _existing(path: Path, samples: Samples, places: list[str], videos: Path, skip: bool) -> Samples:
    known = {video: os.path.isfile(first_file(video)) for video in dict.fromkeys(sample.video for sample in samples)}
    missing = [at for at, sample in enumerate(samples) if not known[sample.video]]
    if not missing:
        return samples
    first = first_file(samples[missing[0]].video)
    what = "is a folder, not a video file" if os.path.isdir(first) else "does not exist"
    count = f"{len(missing)} of {len(samples)} rows have no video file"
    if not skip or len(missing) == len(samples):
        raise NsaLabError(
            f"{path}: {places[missing[0]]}: video {first} {what} ({count}); correct data.videos={videos}"
            " or the row, or leave such rows out with data.on_bad_sample=skip"
        )
    logger.warning("%s: %s and are left out; the first is %s, %s", path, count, places[missing[0]], first)
    kept = (sample for sample in samples if known[sample.video])
    return Samples(kept, samples.skipped | {MISSING: len(missing)})


def _read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, row) of a JSON array, or of JSONL where the file does not open with a bracket.

    A line of JSONL that is no JSON comes as the RowError to raise. Bytes that are no UTF-8 become lone surrogates, so
    that they are the fault of the row they stand in.
    """
    try:
        with open(path, "rb") as file:
            if file.peek(PEEK).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
                yield from _array_rows(_text(file.read()), path)
                return
            # By lines, as a file may be larger than memory, and not at separators that JSON allows inside strings.
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _line_row(_text(line).rstrip("\n"), number)
    except FileNotFoundError as error:
        raise NsaLabError(f"annotations {path} do not exist; correct the path") from error
    except OSError as error:
        raise NsaLabError(f"annotations {path} cannot be read: {error}; give a UTF-8 JSON or JSONL file") from error


def _text(content: bytes) -> str:
    return content.removeprefix(codecs.BOM_UTF8).decode(errors="surrogateescape")


def _array_rows(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise NsaLabError(f"{path}: {place}: not JSON ({error.msg}); correct the line") from error
    except (ValueError, RecursionError) as error:
        raise NsaLabError(f"{path}: not JSON that can be read ({error}); correct the file") from error
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", row


def _line_row(line: str, number: int) -> tuple[str, Any]:
    try:
        return f"line {number}", json.loads(line)
    except json.JSONDecodeError as error:
        return f"line {number}, column {error.colno}", RowError(f"not JSON ({error.msg}); correct the line", line)
    except (ValueError, RecursionError) as error:
        return f"line {number}", RowError(f"not JSON that can be read ({error}); correct the line", line)
