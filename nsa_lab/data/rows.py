"""One row of annotations to a sample: LLaVA-Video-178K's `conversations`, or `messages`, of a video or its frames."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nsa_lab.data.images import FrameFiles, Video
from nsa_lab.errors import short

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
    """One video, a file or its frames, with its turns.

    `task` groups accuracies; `system` replaces data.system_prompt where it is given.

    `meta` is what the row says about the video for those who study it: `events` or `cuts` (see nsa_lab.analysis).
    """

    id: str
    video: Video
    turns: tuple[Turn, ...]
    task: str
    system: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict, compare=False)


class RowError(Exception):
    """A fault in one row, without the place, which the caller knows; `line`: the row, where it is no JSON."""

    def __init__(self, message: str, line: str = ""):
        super().__init__(message)
        self.line = line


def parse_row(row: Any, videos: Path, absolute: bool, default_id: str) -> Sample:
    """The sample of one row; paths are relative to `videos`, or absolute where that is allowed.

    Raises RowError, also where `row` is one.
    """
    if isinstance(row, RowError):
        raise row
    if not isinstance(row, Mapping):
        raise RowError(f"is a {type(row).__name__}, not an object; write {{id, video, conversations}}")
    if row.get("image") or (row.get("images") and (row.get("video") or row.get("videos"))):
        raise RowError("has an image, and only its video would be shown; give rows of one video each")
    messages = _messages(row)
    system = messages.pop(0)[1] if messages and messages[0][0] == "system" else None
    return Sample(
        id=_id(row, default_id),
        video=_frames(row, videos, absolute) or _video_file(_video_path(row), videos, absolute),
        turns=_turns(messages),
        task=_task(row),
        system=system,
        meta=_meta(row),
    )


def _id(row: Mapping[str, Any], default: str) -> str:
    key = next((key for key in ("id", "video_id") if row.get(key) is not None), None)
    if key is None:
        return default
    return str(row[key]) if type(row[key]) is int else _string(row[key], key, "a text or a whole number")


def _task(row: Mapping[str, Any]) -> str:
    given = [_string(row[key], key, "a text") for key in ("task", "data_source") if row.get(key) is not None]
    return next((task for task in given if task), "video")


def _meta(row: Mapping[str, Any]) -> Mapping[str, Any]:
    value = row.get("meta") or {}
    if not isinstance(value, Mapping):
        raise RowError(f"`meta` is a {type(value).__name__}; write an object, or leave it out")
    return value


def _string(value: Any, where: str, wanted: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"`{where}` is {short(value)}; write {wanted}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"`{where}` holds what is no UTF-8 text (character {error.start + 1}); correct it") from error
    return value


def _messages(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(role, text) of each message, roles named user, assistant and system."""
    form = next((form for form in FORMS if form in row), None)
    if form is None:
        raise RowError("has neither `conversations` nor `messages`; add the questions and answers")
    if not isinstance(row[form], list) or not row[form]:
        raise RowError(f"`{form}` is empty or no list; give at least one question and one answer")
    return [_message(item, f"{form}[{at}]", *FORMS[form]) for at, item in enumerate(row[form])]


def _message(item: Any, where: str, role_key: str, text_key: str) -> tuple[str, str]:
    if not isinstance(item, Mapping) or role_key not in item or text_key not in item:
        raise RowError(f"`{where}` lacks `{role_key}` or `{text_key}`; write both")
    role = item[role_key]
    if not isinstance(role, str) or role not in ROLES:
        raise RowError(f"`{where}.{role_key}` is {short(role)}; use one of {', '.join(ROLES)}")
    return ROLES[role], _text(item[text_key], f"{where}.{text_key}")


def _text(content: Any, where: str) -> str:
    if isinstance(content, list):
        content = "".join(_part_text(part, f"{where}[{at}]") for at, part in enumerate(content))
    if not isinstance(content, str):
        raise RowError(f"`{where}` is a {type(content).__name__}; write text")
    content = _string(content, where, "text")
    for placeholder in PLACEHOLDERS:
        content = content.replace(placeholder, "")
    content = content.strip()
    if not content:
        raise RowError(f"`{where}` holds no text; write the question or answer")
    return content


def _part_text(part: Any, where: str) -> str:
    """The text of one part of a message's content, empty for its video."""
    if not isinstance(part, Mapping):
        raise RowError(f"`{where}` is {short(part)}; write {{type, text}} or {{type, video}}")
    if part.get("text") is not None:
        return _string(part["text"], f"{where}.text", "text")
    if part.get("video") is None:
        raise RowError(f"`{where}` is {short(dict(part))}, no text and no video; write {{type, text}} or leave it out")
    return ""


def _turns(messages: list[tuple[str, str]]) -> tuple[Turn, ...]:
    roles = [role for role, _ in messages]
    if len(roles) % 2 or roles != ["user", "assistant"] * (len(roles) // 2) or not roles:
        raise RowError(
            f"turns come as {', '.join(roles) or 'nothing'}; alternate question and answer, question first, answer last"
        )
    texts = [text for _, text in messages]
    return tuple(Turn(question, answer) for question, answer in zip(texts[::2], texts[1::2], strict=True))


def _frames(row: Mapping[str, Any], videos: Path, absolute: bool) -> FrameFiles | None:
    """The row's `images`, which are its video's frames, one `<image>` each before the first question."""
    images = row.get("images")
    if not images:
        return None
    if not isinstance(images, list):
        raise RowError(f"`images` is {short(images)}; write a list with the path of each frame")
    names = [_string(image, f"images[{at}]", "the path of an image") for at, image in enumerate(images)]
    marks = [str(message).count("<image>") for message in row.get("conversations", row.get("messages", []))]
    if sum(marks) != len(names) or sum(mark > 0 for mark in marks) != 1:
        raise RowError(
            f"has {len(names)} images and {sum(marks)} <image>; write as many before the first question, in one message"
        )
    folder = _video_file(names[0], videos, absolute).parent
    if any(os.path.dirname(name) != os.path.dirname(names[0]) for name in names):
        raise RowError("has images in several folders; those of one video belong into one")
    return FrameFiles.of(folder, [os.path.basename(name) for name in names])


def _video_path(row: Mapping[str, Any]) -> str:
    """The row's one video: its `video`, its `videos`, or the video part of a message."""
    found = [row["video"]] if "video" in row else row.get("videos") or []
    if not isinstance(found, list):
        raise RowError(f"`videos` is {short(found)}; write a list of one path")
    found = found or list(_video_parts(row))
    if not found:
        raise RowError("has no `video`; add the path of its video file")
    if len(found) > 1:
        raise RowError(f"has {len(found)} videos; split it into rows of one video each")
    if not found[0]:
        raise RowError(f"`video` is {short(found[0])}; write the path of a video file")
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
        raise RowError(
            f"`video` is the absolute path {name}; write it relative to data.videos={videos},"
            " or allow such paths with data.absolute_videos=true"
        )
    if plain.split(os.sep)[0] == os.pardir:
        raise RowError(f"`video` {name} is outside of data.videos={videos}; name a folder that holds all videos")
    return videos / plain
