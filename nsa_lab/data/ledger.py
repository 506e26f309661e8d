"""What is known of files, kept in a file as it becomes known."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nsa_lab.data.images import FrameFiles, Video, first_file
from nsa_lab.files import locked, writing

logger = logging.getLogger("nsa_lab")


class Ledger:
    """Plain values by key. Each stands in `file` as soon as it is added; who opens it has it alone (`open_ledger`)."""

    def __init__(self, file: Path):
        self.file = file
        self.known = _read(file)

    def add(self, key: str, value: Any) -> None:
        """Raises NsaLabError where it cannot be written."""
        self.known[key] = value
        with writing(self.file, "make room and run the same command again"), open(self.file, "a") as stream:
            stream.write(json.dumps([key, value]) + "\n")


@contextmanager
def open_ledger(file: Path, waiting: str) -> Iterator[Ledger]:
    """The ledger in `file`, made where there is none; where another process has it, says `waiting` and waits."""
    with writing(file, "name another folder"):
        file.parent.mkdir(parents=True, exist_ok=True)
    with locked(file.with_name(f"{file.name}.lock"), waiting):
        yield Ledger(file)


def video_key(video: Video, *more: Any) -> str | None:
    """A video as it is now, by its place, size and time of change, and what else a value depends on; None: no file.

    Of frames that are images by the first, and their number.
    """
    file = first_file(video)
    try:
        now = os.stat(file)
    except OSError:
        return None
    if isinstance(video, FrameFiles):
        more = (f"{len(video)} images", *more)
    return " ".join(map(str, (file.resolve(), now.st_size, now.st_mtime_ns, *more)))


def _read(file: Path) -> dict[str, Any]:
    """What stands there; a line that was cut off with its process is none, and no part of the next."""
    content = file.read_bytes() if file.exists() else b""
    known = {}
    for line in content.split(b"\n"):
        try:
            key, value = json.loads(line)
        except ValueError:
            continue
        known[key] = value
    if content and not content.endswith(b"\n"):
        with writing(file, "make it writable"), open(file, "ab") as stream:
            stream.write(b"\n")
    return known
