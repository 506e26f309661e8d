"""Annotations to samples: LLaVA-Video-178K's `conversations` rows and `messages` rows, as a JSON array or JSONL."""

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nsa_lab.data.errors import BAD_ROW, MISSING
from nsa_lab.errors import NsaLabError, short

logger = logging.getLogger(__name__)

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
FORMS = {"conversations": ("from", "value"), "messages": ("role", "content")}
PLACEHOLDERS = ("<image>", "<video>")


@dataclass(frozen=True)
class Turn:
    """One question and its answer, without surrounding white space and without the video's placeholder.

    An answer of None is still to be given.
    """

    question: str
    answer: str | None


@dataclass(frozen=True)
class Sample:
    """One video with its turns. `task` groups accuracies; `system` replaces data.system_prompt where it is given.

    `meta` is what the row says about the video for those who study it: `events` or `cuts` (see nsa_lab.analysis).
    """

    id: str
    video: Path
    turns: tuple[Turn, ...]
    task: str
    system: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict, compare=False)


class Samples(list[Sample]):
    """Samples, and how many rows were left out because nothing can be made of them, by kind."""

    def __init__(self, samples: Iterable[Sample] = (), skipped: Mapping[str, int] | None = None):
        super().__init__(samples)
        self.skipped = dict(skipped or {})


class _RowError(Exception):
    """A fault in one row, without the place, which the caller knows."""


def read_annotations(path: Path, videos: Path, *, skip: bool = False, absolute: bool = False) -> Samples:
    """The samples of an annotation file, in its order; video paths are relative to the folder `videos`.

    Raises NsaLabError naming the file, the row (counted from 1) or line, and the remedy. With `skip`, rows that are
    no sample and rows whose video file does not exist are left out, told in a warning and counted, unless none
    remains. `absolute` allows rows absolute paths; no other path may leave `videos`.
    """
    samples, places, faults = Samples(), [], []
    for place, row in _read_rows(path):
        try:
            samples.append(_parse_row(row, videos, absolute, default_id=place))
            places.append(place)
        except _RowError as error:
            if not skip:
                raise NsaLabError(
                    f"{path}: {place}: {error}, or leave such rows out with data.on_bad_sample=skip"
                ) from error
            faults.append(f"{place}: {error}")
    if faults:
        count = f"{len(faults)} of {len(faults) + len(samples)} rows cannot be used"
        if not samples:
            raise NsaLabError(f"{path}: {count}; correct them; the first is {faults[0]}")
        logger.warning("%s: %s and are left out; the first is %s", path, count, faults[0])
        samples.skipped[BAD_ROW] = len(faults)
    if not samples:
        raise NsaLabError(f"{path} holds no samples; write at least one row")
    return _existing(path, samples, places, videos, skip)


def _existing(path: Path, samples: Samples, places: list[str], videos: Path, skip: bool) -> Samples:
    known = {video: os.path.isfile(video) for video in dict.fromkeys(sample.video for sample in samples)}
    missing = [at for at, sample in enumerate(samples) if not known[sample.video]]
    if not missing:
        return samples
    first = samples[missing[0]].video
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

    A line of JSONL that is no JSON comes as the _RowError to raise. Bytes that are no UTF-8 become lone surrogates, so
    that they are the fault of the row they stand in.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    except FileNotFoundError as error:
        raise NsaLabError(f"annotations {path} do not exist; correct the path") from error
    except OSError as error:
        raise NsaLabError(f"annotations {path} cannot be read: {error}; give a UTF-8 JSON or JSONL file") from error
    if text.lstrip().startswith("["):
        yield from _array_rows(text, path)
        return
    # Not splitlines(), which also breaks at separators that JSON allows inside strings.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _line_row(line, number)


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
        return f"line {number}, column {error.colno}", _RowError(f"not JSON ({error.msg}); correct the line")
    except (ValueError, RecursionError) as error:
        return f"line {number}", _RowError(f"not JSON that can be read ({error}); correct the line")


def _parse_row(row: Any, videos: Path, absolute: bool, default_id: str) -> Sample:
    if isinstance(row, _RowError):
        raise row
    if not isinstance(row, Mapping):
        raise _RowError(f"is a {type(row).__name__}, not an object; write {{id, video, conversations}}")
    if row.get("image") or row.get("images"):
        raise _RowError("has an image, and only its video would be shown; give rows of one video each")
    messages = _messages(row)
    system = messages.pop(0)[1] if messages and messages[0][0] == "system" else None
    return Sample(
        id=_id(row, default_id),
        video=_video_file(_video_path(row), videos, absolute),
        turns=_turns(messages),
        task=_task(row),
        system=system,
        meta=_meta(row),
    )


def _id(row: Mapping[str, Any], default: str) -> str:
    value = row.get("id")
    if value is None:
        return default
    return str(value) if type(value) is int else _string(value, "id", "a text or a whole number")


def _task(row: Mapping[str, Any]) -> str:
    given = [_string(row[key], key, "a text") for key in ("task", "data_source") if row.get(key) is not None]
    return next((task for task in given if task), "video")


def _meta(row: Mapping[str, Any]) -> Mapping[str, Any]:
    value = row.get("meta") or {}
    if not isinstance(value, Mapping):
        raise _RowError(f"`meta` is a {type(value).__name__}; write an object, or leave it out")
    return value


def _string(value: Any, where: str, wanted: str) -> str:
    if not isinstance(value, str):
        raise _RowError(f"`{where}` is {short(value)}; write {wanted}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _RowError(f"`{where}` holds what is no UTF-8 text (character {error.start + 1}); correct it") from error
    return value


def _messages(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(role, text) of each message, roles named user, assistant and system."""
    form = next((form for form in FORMS if form in row), None)
    if form is None:
        raise _RowError("has neither `conversations` nor `messages`; add the questions and answers")
    if not isinstance(row[form], list) or not row[form]:
        raise _RowError(f"`{form}` is empty or no list; give at least one question and one answer")
    return [_message(item, f"{form}[{at}]", *FORMS[form]) for at, item in enumerate(row[form])]


def _message(item: Any, where: str, role_key: str, text_key: str) -> tuple[str, str]:
    if not isinstance(item, Mapping) or role_key not in item or text_key not in item:
        raise _RowError(f"`{where}` lacks `{role_key}` or `{text_key}`; write both")
    role = item[role_key]
    if not isinstance(role, str) or role not in ROLES:
        raise _RowError(f"`{where}.{role_key}` is {short(role)}; use one of {', '.join(ROLES)}")
    return ROLES[role], _text(item[text_key], f"{where}.{text_key}")


def _text(content: Any, where: str) -> str:
    if isinstance(content, list):
        content = "".join(_part_text(part, f"{where}[{at}]") for at, part in enumerate(content))
    if not isinstance(content, str):
        raise _RowError(f"`{where}` is a {type(content).__name__}; write text")
    content = _string(content, where, "text")
    for placeholder in PLACEHOLDERS:
        content = content.replace(placeholder, "")
    content = content.strip()
    if not content:
        raise _RowError(f"`{where}` holds no text; write the question or answer")
    return content


def _part_text(part: Any, where: str) -> str:
    """The text of one part of a message's content, empty for its video."""
    if not isinstance(part, Mapping):
        raise _RowError(f"`{where}` is {short(part)}; write {{type, text}} or {{type, video}}")
    if part.get("text") is not None:
        return _string(part["text"], f"{where}.text", "text")
    if part.get("video") is None:
        raise _RowError(f"`{where}` is {short(dict(part))}, no text and no video; write {{type, text}} or leave it out")
    return ""


def _turns(messages: list[tuple[str, str]]) -> tuple[Turn, ...]:
    roles = [role for role, _ in messages]
    if len(roles) % 2 or roles != ["user", "assistant"] * (len(roles) // 2) or not roles:
        raise _RowError(
            f"turns come as {', '.join(roles) or 'nothing'}; alternate question and answer, question first, answer last"
        )
    texts = [text for _, text in messages]
    return tuple(Turn(question, answer) for question, answer in zip(texts[::2], texts[1::2], strict=True))


def _video_path(row: Mapping[str, Any]) -> str:
    """The row's one video: its `video`, its `videos`, or the video part of a message."""
    found = [row["video"]] if "video" in row else row.get("videos") or []
    if not isinstance(found, list):
        raise _RowError(f"`videos` is {short(found)}; write a list of one path")
    found = found or list(_video_parts(row))
    if not found:
        raise _RowError("has no `video`; add the path of its video file")
    if len(found) > 1:
        raise _RowError(f"has {len(found)} videos; split it into rows of one video each")
    if not found[0]:
        raise _RowError(f"`video` is {short(found[0])}; write the path of a video file")
    return _string(found[0], "video", "the path of a video file")


def _video_parts(row: Mapping[str, Any]) -> Iterator[Any]:
    """The videos in the parts of a `messages` row."""
    contents = [message["content"] for message in row["messages"]] if "conversations" not in row else []
    for content in contents:
        if isinstance(content, list):
            yield from (part["video"] for part in content if part.get("video") is not None)


def _video_file(name: str, videos: Path, absolute: bool) -> Path:
    """Where the row's video is: inside `videos`, or anywhere where its path is `absolute` and such are allowed."""
    plain = os.path.normpath(name)
    if os.path.isabs(plain):
        if absolute or Path(plain).is_relative_to(os.path.abspath(videos)):
            return Path(plain)
        raise _RowError(
            f"`video` is the absolute path {name}; write it relative to data.videos={videos},"
            " or allow such paths with data.absolute_videos=true"
        )
    if plain.split(os.sep)[0] == os.pardir:
        raise _RowError(f"`video` {name} is outside of data.videos={videos}; name a folder that holds all videos")
    return videos / plain
