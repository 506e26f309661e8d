"""A folder of predictions: whose they are (about.json), a line each (predictions.jsonl), written as they are made."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nsa_lab.errors import NsaLabError, short
from nsa_lab.files import FileLock, no_folder, read_json, write_json, writing

READ = "read"
"""Where ABOUT has the settings that its digest of them is of."""
ABOUT, LINES, LOCK = "about.json", "predictions.jsonl", "evaluation.lock"
KEYS = ("place", "turn", "id", "group", "question", "expected", "answer", "understood", "correct")
"""What every line says; of a sample that cannot be used `answer` is null, and `bad` says why; `correct` is null too
where another scores."""

Row = dict[str, Any]


@contextmanager
def recorded(
    folder: Path | None, about: Mapping[str, str], settings: Mapping[str, Any] | None = None
) -> Iterator["Predictions"]:
    """The predictions in `folder`, those made before among them; without a folder nothing is written.

    `about` says of which model and data they are, `settings` what its digest `settings` is of, so that a refusal can
    name those that differ. Raises NsaLabError where the folder holds those of another, a damaged
    line, or another process writes there.
    """
    if folder is None:
        yield Predictions(None, {})
        return
    if folder.exists() and not folder.is_dir():
        raise NsaLabError(f"{folder} {no_folder(folder)}; name another --output")
    with writing(folder, "name another --output"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        taken = lock.take()
    if not taken:
        raise NsaLabError(f"another process evaluates into {folder}; wait for it, or name another --output")
    try:
        _claim(folder, dict(about), dict(settings or {}))
        yield Predictions(folder / LINES, _read(folder / LINES))
    finally:
        lock.free()


class Predictions:
    """Rows by (place, turn); `add` keeps them in `file` as well, whole lines alone."""

    def __init__(self, file: Path | None, rows: dict[tuple[int, int], Row]):
        self.file, self.rows = file, rows

    def add(self, rows: list[Row]) -> None:
        """Raises NsaLabError where they cannot be written."""
        self.rows |= {(row["place"], row["turn"]): row for row in rows}
        if self.file is not None:
            with (
                writing(self.file, "make room and run the same command again"),
                open(self.file, "a", encoding="utf-8") as stream,
            ):
                stream.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _claim(folder: Path, about: dict[str, str], settings: dict[str, Any]) -> None:
    """Write `about` into a new folder; raise NsaLabError where the folder is of something else."""
    remedy = f"remove {folder}, or name another --output"
    there = read_json(folder / ABOUT, remedy)
    if not there:
        if (folder / LINES).exists():
            raise NsaLabError(f"{folder / LINES} is there without {ABOUT}, which says of which model it is; {remedy}")
        with writing(folder, "name another --output"):
            write_json(folder / ABOUT, about | {READ: settings})
        return
    if other := [key for key in about if there.get(key) != about[key]]:
        parts = {key: (there.get(key), about[key]) for key in other}
        if "settings" in parts and (differing := _differing(there.get(READ), settings)):
            del parts["settings"]
            parts |= differing
        said = ", ".join(f"{key} {theirs} there, {mine} here" for key, (theirs, mine) in parts.items())
        raise NsaLabError(f"{folder} holds predictions of something else ({said}); {remedy}")


def _differing(there: Any, here: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The settings that are others there, with both values; those at their defaults are in neither."""
    if not isinstance(there, dict):
        return {}
    keys = [key for key in sorted({*there, *here}) if there.get(key) != here.get(key)]
    return {key: (_value(there, key), _value(here, key)) for key in keys}


def _value(settings: Mapping[str, Any], key: str) -> str:
    return short(settings[key]) if key in settings else "by default"


def _read(file: Path) -> dict[tuple[int, int], Row]:
    """The rows of whole lines; what a killed process left half written is cut off, and bad samples are tried again."""
    content = file.read_bytes() if file.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with writing(file, "name another --output"), open(file, "r+b") as stream:
            stream.truncate(len(whole))
    rows = {}
    for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
        row = _row(line, f"{file}:{number}")
        if row["answer"] is not None:
            rows[row["place"], row["turn"]] = row
    return rows


def _row(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line)
        if lacking := [key for key in KEYS if key not in row]:
            raise ValueError(f"it lacks {', '.join(lacking)}")
        if row["correct"] not in (True, False, None) or not all(type(row[key]) is int for key in ("place", "turn")):
            raise ValueError(f"place, turn or correct is {short([row[key] for key in ('place', 'turn', 'correct')])}")
    except (ValueError, TypeError) as error:
        raise NsaLabError(f"{where} is damaged ({short(error)}); remove the line, and it is answered again") from error
    return dict(row)
