"""Annotations to samples: LLaVA-Video-178K's `conversations` rows and `messages` rows, as a JSON array or JSONL."""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nsa_lab.errors import NsaLabError

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


class _RowError(Exception):
    """A fault in one row, without the place, which the caller knows."""


def read_annotations(path: Path, videos: Path, *, skip_missing: bool = False) -> list[Sample]:
    """The samples of an annotation file, in its order; video paths are relative to the folder `videos`.

    Raises NsaLabError naming the file, the row (counted from 1) or line, and the remedy. Rows whose video file does
    not exist are an error too, or with `skip_missing` are left out and counted in a warning.
    """
    samples, places = [], []
    for place, row in _read_rows(path):
        try:
            samples.append(_parse_row(row, videos, default_id=place))
        except _RowError as error:
            raise NsaLabError(f"{path}: {place}: {error}") from error
        places.append(place)
    if not samples:
        raise NsaLabError(f"{path} holds no samples; write at least one row")
    return _existing(path, samples, places, videos, skip_missing)


def _existing(path: Path, samples: list[Sample], places: list[str], videos: Path, skip: bool) -> list[Sample]:
    known = {video: video.is_file() for video in dict.fromkeys(sample.video for sample in samples)}
    missing = [at for at, sample in enumerate(samples) if not known[sample.video]]
    if not missing:
        return samples
    first = samples[missing[0]].video
    what = "is a folder, not a video file" if first.is_dir() else "does not exist"
    count = f"{len(missing)} of {len(samples)} rows have no video file"
    if not skip or len(missing) == len(samples):
        raise NsaLabError(
            f"{path}: {places[missing[0]]}: video {first} {what} ({count}); correct data.videos={videos}"
            " or the row, or leave such rows out with data.on_bad_sample=skip"
        )
    logger.warning("%s: %s and are left out; the first is %s, %s", path, count, places[missing[0]], first)
    return [sample for sample in samples if known[sample.video]]


def _read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, row) of a JSON array, or of JSONL where the file does not open with a bracket."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise NsaLabError(f"annotations {path} do not exist; correct the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise NsaLabError(f"annotations {path} cannot be read: {error}; give a UTF-8 JSON or JSONL file") from error
    if text.lstrip().startswith("["):
        for number, row in enumerate(_parse_json(text, path, first_line=1), start=1):
            yield f"row {number}", row
        return
    # Not splitlines(), which also breaks at separators that JSON allows inside strings.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"line {number}", _parse_json(line, path, first_line=number)


def _parse_json(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise NsaLabError(
            f"{path}: line {line}, column {error.colno}: not JSON ({error.msg}); correct the line"
        ) from error


def _parse_row(row: Any, videos: Path, default_id: str) -> Sample:
    if not isinstance(row, Mapping):
        raise _RowError(f"is a {type(row).__name__}, not an object; write {{id, video, conversations}}")
    messages = _messages(row)
    system = messages.pop(0)[1] if messages and messages[0][0] == "system" else None
    return Sample(
        id=str(row.get("id", default_id)),
        video=videos / _video_path(row),
        turns=_turns(messages),
        task=str(row.get("task") or row.get("data_source") or "video"),
        system=system,
        meta=row["meta"] if isinstance(row.get("meta"), Mapping) else {},
    )


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
    if item[role_key] not in ROLES:
        raise _RowError(f"`{where}.{role_key}` is {item[role_key]!r}; use one of {', '.join(ROLES)}")
    return ROLES[item[role_key]], _text(item[text_key], f"{where}.{text_key}")


def _text(content: Any, where: str) -> str:
    if isinstance(content, list):
        content = "".join(part.get("text") or "" for part in content if isinstance(part, Mapping))
    if not isinstance(content, str):
        raise _RowError(f"`{where}` is a {type(content).__name__}; write text")
    for placeholder in PLACEHOLDERS:
        content = content.replace(placeholder, "")
    content = content.strip()
    if not content:
        raise _RowError(f"`{where}` holds no text; write the question or answer")
    return content


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
    found = [row["video"]] if "video" in row else list(row.get("videos") or [])
    if not found:
        found = [part["video"] for part in _parts(row) if "video" in part]
    if not found:
        raise _RowError("has no `video`; add the path of its video file")
    if len(found) > 1:
        raise _RowError(f"has {len(found)} videos; split it into rows of one video each")
    if not isinstance(found[0], str) or not found[0]:
        raise _RowError(f"`video` is {found[0]!r}; write the path of a video file")
    return found[0]


def _parts(row: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for message in row.get("messages") or []:
        if isinstance(message["content"], list):
            yield from (part for part in message["content"] if isinstance(part, Mapping))
