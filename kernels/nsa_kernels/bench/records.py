"""One measurement is one CSV row, written the moment it is known, so that an interrupted run loses nothing."""

import csv
import dataclasses
import datetime
import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """What is timed. block_size, block_count and query_tile are 0 where they mean nothing (dense attention)."""

    op: str
    inputs: str
    tokens: int
    block_size: int
    block_count: int
    query_tile: int
    direction: str


@dataclass(frozen=True)
class Shape:
    """Heads, window and dtype, the same for all rows of a run."""

    heads: int
    groups: int
    head_dim: int
    window: int
    dtype: str


@dataclass(frozen=True)
class Origin:
    """The machine and the code that rows come from."""

    gpu: str
    driver: str
    torch: str
    triton: str
    cuda: str
    commit: str
    date: str


@dataclass(frozen=True)
class Result:
    """milliseconds: the median. peak_mib: memory above the inputs, output included. status: `ok`, `ok: NOTE`,
    `failed: REASON` or `skipped: REASON`.

    gflop: arithmetic of the op itself, two flops a multiply-add, masked pairs not counted. min_mib: every input read
    once and every output written once. roof_ms: the longer of both at the machine's measured rates; roof_share: how
    much of the time that explains. moved_mib, moved_share: the same with what our walk moves through its slots.
    union16: mean number of distinct blocks that 16 neighbouring queries choose.
    """

    milliseconds: float | None = None
    peak_mib: float | None = None
    status: str = "ok"
    gflop: float | None = None
    min_mib: float | None = None
    moved_mib: float | None = None
    roof_ms: float | None = None
    roof_share: float | None = None
    moved_share: float | None = None
    union16: float | None = None


@dataclass(frozen=True)
class Row:
    case: Case
    result: Result
    shape: Shape
    origin: Origin


_PARTS: dict[str, type] = {"case": Case, "result": Result, "shape": Shape, "origin": Origin}
_INTEGERS = {"tokens", "block_size", "block_count", "query_tile", "heads", "groups", "head_dim", "window"}
_HEADINGS = {"tokens": "T"}
COLUMNS = [_HEADINGS.get(f.name, f.name) for part in _PARTS.values() for f in dataclasses.fields(part)]


def append(path: Path, row: Row) -> None:
    """Add one row to the CSV at `path`, made with a header line where there is none.

    Raises ValueError where the file has other columns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists() or not path.stat().st_size
    if not fresh:
        with path.open(newline="") as file:
            _check_columns(path, next(csv.reader(file)))
    values = [getattr(getattr(row, part), f.name) for part in _PARTS for f in dataclasses.fields(_PARTS[part])]
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if fresh:
            writer.writerow(COLUMNS)
        writer.writerow([_text(x) for x in values])


def read(path: Path) -> list[Row]:
    """All rows. Raises ValueError where the file has other columns."""
    with path.open(newline="") as file:
        reader = csv.reader(file)
        _check_columns(path, next(reader, []))
        return [_row(cells) for cells in reader]


def latest(rows: Iterable[Row]) -> list[Row]:
    """One row for each case and shape: the last that has a time, or the last at all. In order of first appearance."""
    found: dict[tuple[Case, Shape], Row] = {}
    for row in rows:
        key = row.case, row.shape
        if key not in found or row.result.milliseconds is not None or found[key].result.milliseconds is None:
            found[key] = row
    return list(found.values())


def origin(commit: str | None) -> Origin:
    """Facts of this machine. commit: as given, else the variable NSA_COMMIT, else git's, else `unknown`."""
    import torch
    import triton

    cuda = torch.cuda.is_available()
    return Origin(
        gpu=torch.cuda.get_device_name() if cuda else "CPU (Triton interpreter)",
        driver=_output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0") or "unknown",
        torch=torch.__version__,
        triton=triton.__version__,
        cuda=torch.version.cuda or "none",
        commit=commit or os.environ.get("NSA_COMMIT") or _git_commit() or "unknown",
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _git_commit() -> str:
    """HEAD, and whether anything in this package differs from it."""
    here = ("git", "-C", str(Path(__file__).parents[1]))
    commit = _output(*here, "rev-parse", "HEAD")
    changed = commit and _output(*here, "status", "--porcelain", "--", ".")
    return commit + ("-dirty" if changed else "")


def _output(*command: str) -> str:
    """What a command prints, or nothing where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _row(cells: list[str]) -> Row:
    values = iter(cells)
    parts = {name: part(**{f.name: _value(f, next(values)) for f in dataclasses.fields(part)})
             for name, part in _PARTS.items()}  # fmt: skip
    return Row(**parts)


def _value(field: "dataclasses.Field[object]", text: str) -> object:
    if field.name in _INTEGERS:
        return int(text)
    if field.default is None:
        return float(text) if text else None
    return text


def _text(value: object) -> object:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def _check_columns(path: Path, columns: list[str]) -> None:
    if columns != COLUMNS:
        raise ValueError(
            f"{path} has other columns than this version of the bench writes; move it away or use --output"
        )
