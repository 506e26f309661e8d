"""The local record of a run: written before anything is sent, and all that is needed to send it later.

A run directory holds `metrics.jsonl` (one line per step: step, time in ms, metrics), `params.json`,
`tags.json` and `tracking.json` (where the run is sent and how much has arrived). After a resume a step can
stand in `metrics.jsonl` twice; the later line counts.
"""

import dataclasses
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from nsa_lab.config import is_incidental
from nsa_lab.errors import NsaLabError
from nsa_lab.files import LOCK, METRICS, TRACKING, FileLock, read_json, write_json

LOCK_PATIENCE_S = 20.0
METRICS_PER_BATCH = 500
REMEDY = "remove it to start a new record"


@dataclass
class State:
    """What `tracking.json` holds; `sent_metrics` is a byte offset, `artifacts` are (path, folder), `earlier` its run
    ids in stores that it was sent to before."""

    uri: str | None
    experiment: str
    run_name: str
    parent: str | None
    artifact_root: str | None = None
    run_id: str | None = None
    earlier: list[str] = field(default_factory=list)
    record_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: int = field(default_factory=lambda: now_ms())
    ended: int | None = None
    status: str = "RUNNING"
    artifacts: list[list[str]] = field(default_factory=list)
    sent_metrics: int = 0
    sent_params: int = 0
    sent_tags: dict[str, str] = field(default_factory=dict)
    sent_artifacts: int = 0
    sent_status: str | None = None


class Released(Exception):
    """The record may be another process's by now."""


class Record:
    """One run's files. Safe for one writer and one sender thread; a second process is refused."""

    def __init__(self, directory: Path, state: State):
        self.directory = directory
        self.state = state
        self.guard = threading.RLock()
        params, tags = (read_json(directory / file, REMEDY) for file in ("params.json", "tags.json"))
        self.all_params = {key: str(value) for key, value in params.items()}
        self.all_tags = {key: str(value) for key, value in tags.items()}
        self.metrics_file = directory / METRICS
        self.locked_by: FileLock | None = None
        self.released = False

    @classmethod
    def load(cls, directory: Path) -> Self | None:
        """The record in `directory`, or None where there is none."""
        file = directory / TRACKING
        content = read_json(file, REMEDY, ("uri", "experiment", "run_name", "parent"))
        if strangers := sorted(content.keys() - {field.name for field in dataclasses.fields(State)}):
            raise NsaLabError(f"{file} has {', '.join(strangers)}, of which this version knows nothing; {REMEDY}")
        return cls(directory, State(**content)) if content else None

    @classmethod
    def take(cls, directory: Path) -> Self | None:
        """The record in `directory`, locked, or None where there is none or another process writes it."""
        lock = FileLock(directory / LOCK)
        if not (directory / TRACKING).exists() or not lock.take():
            return None
        record = None
        try:
            record = cls.load(directory)
        finally:
            if record is None:  # a traceback that someone keeps would keep the lock
                lock.free()
        if record is not None:
            record.locked_by = lock
        return record

    @classmethod
    def begin(cls, directory: Path, fresh: State, *, run_id: str | None, again: bool) -> Self:
        """The locked record of `directory`: that of run `run_id`, or one left unfinished (`again`: or ended), goes on.

        Else `fresh` begins, and what was recorded before keeps its files under numbered names. Raises NsaLabError
        when another process records in `directory`.
        """
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / LOCK)
        if not lock.take(LOCK_PATIENCE_S):
            raise NsaLabError(f"another process records a run in {directory}; wait for it or choose another name")
        try:
            old = cls.load(directory)
            if old is not None and _goes_on(old.state, fresh, run_id, again):
                state = dataclasses.replace(old.state, status="RUNNING", ended=None)
            else:
                state = dataclasses.replace(fresh, run_id=run_id)
                if old is not None and run_id is None:
                    set_aside(directory)
            record = cls(directory, state)
            record._cut_half_a_line()
        except BaseException:
            lock.free()
            raise
        record.locked_by = lock
        return record

    def unlock(self) -> None:
        """Let other processes write it; this object does no more."""
        with self.guard:
            self.released = True
            if self.locked_by is not None:
                self.locked_by.free()

    def update(self, **changes: Any) -> None:
        """Change fields of the state and save it. Raises Released after `unlock`."""
        with self.guard:
            if self.released:
                raise Released
            self.state = dataclasses.replace(self.state, **changes)
            write_json(self.directory / TRACKING, dataclasses.asdict(self.state))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record scalars at an optimiser step."""
        line = {"step": int(step), "time": now_ms(), "metrics": {k: float(v) for k, v in values.items()}}
        with self.guard, open(self.metrics_file, "a") as file:
            file.write(json.dumps(line) + "\n")

    def params(self, flat: Mapping[str, Any]) -> None:
        """Record params, without those that cannot change a result: a resumed run may have other ones.

        Raises NsaLabError when one was recorded with another value.
        """
        new = {k: str(v) for k, v in flat.items() if not is_incidental(k)}
        with self.guard:
            changed = [k for k, v in new.items() if self.all_params.get(k, v) != v]
            if changed:
                old = f"{changed[0]}={self.all_params[changed[0]]}"
                raise NsaLabError(
                    f"{self.directory} holds a run with {old}, now {new[changed[0]]}; "
                    "params of a run cannot change: choose another name or remove the directory"
                )
            self.all_params |= new
            write_json(self.directory / "params.json", self.all_params)

    def tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags; a tag may change."""
        with self.guard:
            self.all_tags |= {k: str(v) for k, v in tags.items()}
            write_json(self.directory / "tags.json", self.all_tags)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Record a file or a folder, under `folder` of the run's artifacts. Raises NsaLabError where there is none."""
        if not path.exists():
            raise NsaLabError(f"artifact {path} does not exist; write it before recording it")
        name, home = path.resolve(), self.directory.resolve()
        name = name.relative_to(home) if name.is_relative_to(home) else name
        with self.guard:
            self.update(artifacts=[*self.state.artifacts, [str(name), folder]])

    def unsent_metrics(self) -> Iterator[tuple[list[dict[str, Any]], int]]:
        """Batches of complete lines after the last offset that arrived, each with the offset behind it."""
        if not self.metrics_file.exists():
            return
        with open(self.metrics_file, "rb") as lines:
            lines.seek(self.state.sent_metrics)
            batch: list[dict[str, Any]] = []
            values, offset = 0, self.state.sent_metrics
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                batch.append(json.loads(line))
                values, offset = values + len(batch[-1]["metrics"]), offset + len(line)
                if values >= METRICS_PER_BATCH:
                    yield batch, offset
                    batch, values = [], 0
            if batch:
                yield batch, offset

    @property
    def pending(self) -> bool:
        """Whether anything has not arrived yet."""
        with self.guard:
            state = self.state
            return (
                state.run_id is None
                or state.sent_status != state.status
                or state.sent_params < len(self.all_params)
                or state.sent_tags != self.all_tags
                or state.sent_artifacts < len(state.artifacts)
                or (self.metrics_file.exists() and self.metrics_file.stat().st_size > state.sent_metrics)
            )

    def _cut_half_a_line(self) -> None:
        """Remove the end of metrics.jsonl that a killed process left half written."""
        content = self.metrics_file.read_bytes() if self.metrics_file.exists() else b""
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.metrics_file, whole)
        self.update(sent_metrics=min(self.state.sent_metrics, whole))


def set_aside(directory: Path) -> None:
    """Make room for a new run in a directory that holds a finished one: its files get a number."""
    number = 1 + sum(1 for _ in directory.glob("tracking.*.json"))
    for name in (METRICS, "params.json", "tags.json", TRACKING):
        file = directory / name
        if file.exists():
            file.rename(file.with_name(f"{file.stem}.{number}{file.suffix}"))


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def _goes_on(old: State, fresh: State, run_id: str | None, again: bool) -> bool:
    if (old.uri, old.experiment) != (fresh.uri, fresh.experiment):
        return False
    return old.run_id == run_id if run_id else again or old.status != "FINISHED"
