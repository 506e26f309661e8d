"""Files that appear whole or not at all, locks between processes, and JSON that may be damaged."""

import csv
import errno
import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from nsa_lab.errors import NsaLabError, short

UNFINISHED = ".unfinished"
NAME_BYTES = 200
"""File systems take 255; a hash, a number or an ending follow."""
TRACKING, METRICS, LOCK = "tracking.json", "metrics.jsonl", "tracking.lock"
"""What a run's folder holds: its record, each step's metrics, and what who writes there has locked."""
SUMMARY = "summary.json"
"""What a training writes once it is over."""

logger = logging.getLogger(__name__)


def unfit_for_a_folder(name: str) -> str | None:
    """Why one folder cannot be called `name`, in words; None where it can."""
    if not name.strip():
        return "it is empty"
    if name in (".", "..") or "/" in name or "\\" in name:
        return "it leads to another folder; use a name without / and \\"
    if not name.isprintable():
        return "it holds a character that cannot be seen"
    return f"it is longer than {NAME_BYTES} bytes" if len(name.encode()) > NAME_BYTES else None


def digest(value: Any) -> str:
    """Twelve hex digits over a plain value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def no_folder(path: Path) -> str:
    """Why there is no folder at `path`, in words."""
    return "is a file, no folder" if path.exists() else "does not exist"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside `path` for a file or a folder, which takes its place when the block ends without an error.

    Raises OSError where that fails, among others because `path` is a folder that holds something.
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        remove(unfinished)


def clear_unfinished(folder: Path) -> None:
    """Remove what killed processes left of `whole` in or below `folder`. Only for who alone writes there."""
    for leftover in folder.rglob(f".*{UNFINISHED}"):
        remove(leftover)


@contextmanager
def writing(place: Path, remedy: str) -> Iterator[None]:
    """Turn an OSError of the block into an NsaLabError that names the file, else `place`, and ends with `remedy`."""
    try:
        yield
    except OSError as error:
        raise NsaLabError(f"cannot write {error.filename or place}: {error.strerror or error}; {remedy}") from error


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, is a full disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


@contextmanager
def room_on_disk(place: Path, kept: Callable[[], str]) -> Iterator[None]:
    """Turn a full disk in the block into an NsaLabError that names the file, else `place`, and says what is `kept`."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        with writing(place, f"{kept()}; make room and run the same command again"):
            raise


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new one."""
    with whole(path) as unfinished:
        unfinished.write_text(text)


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a reader sees the old content or the new one."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_csv(path: Path, lines: Iterable[Sequence[Any]]) -> None:
    """Write a CSV, its header first among `lines`, so that a reader sees the old table or the new one."""
    with whole(path) as unfinished, open(unfinished, "w", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows(lines)


def read_json(path: Path, remedy: str, keys: Collection[str] = ()) -> dict[str, Any]:
    """The object in a JSON file, empty where there is no file.

    Raises NsaLabError, which ends with `remedy`, where the file cannot be read, is damaged or its object lacks one of
    `keys`.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise NsaLabError(f"{path} is damaged ({error}); {remedy}") from error
    except OSError as error:
        raise NsaLabError(f"{path} cannot be read ({error.strerror}); {remedy}") from error
    if not isinstance(content, dict) or any(key not in content for key in keys):
        raise NsaLabError(f"{path} is damaged (it lacks {', '.join(keys) or 'an object'}); {remedy}")
    return content


def read_metrics(file: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Step and metrics of every whole line of a metrics.jsonl; a last one that is being written is left out.

    Nothing where there is no file. Raises NsaLabError where a line is damaged.
    """
    if not file.is_file():
        return
    for number, line in enumerate(file.read_text(errors="replace").splitlines(keepends=True), start=1):
        if not line.endswith("\n"):
            return
        try:
            row = json.loads(line)
            yield int(row["step"]), {str(name): float(value) for name, value in row["metrics"].items()}
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise NsaLabError(f"{file}:{number} is damaged ({short(error)}); remove the line") from error


class FileLock:
    """A lock on `path` against other processes, which the system frees when its holder ends, however it ends."""

    def __init__(self, path: Path):
        self.path = path
        self._file: IO[str] | None = None

    def take(self, patience_s: float = 0.0) -> bool:
        """Take the lock, trying for `patience_s` seconds; False when another process keeps it."""
        self._file = open(self.path, "w")  # noqa: SIM115
        deadline = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    self.free()
                    return False
                time.sleep(0.05)

    def free(self) -> None:
        if self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)  # a process forked meanwhile has the file open, too
            self._file.close()
            self._file = None


@contextmanager
def locked(path: Path, waiting: str = "") -> Iterator[None]:
    """Hold the lock on `path` (created where missing). Where another process has it, says `waiting` and waits."""
    lock = FileLock(path)
    if not lock.take():
        if waiting:
            logger.warning(waiting)
        lock.take(float("inf"))
    try:
        yield
    finally:
        lock.free()


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that it holds; nothing where there is none."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
