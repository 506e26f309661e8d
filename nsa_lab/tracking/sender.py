"""Carries local records to their tracking server: a thread beside a run, and `push` and `annotate` after it."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from nsa_lab.errors import NsaLabError
from nsa_lab.files import SUMMARY, TRACKING, read_json
from nsa_lab.redact import keep
from nsa_lab.tracking import store
from nsa_lab.tracking.record import Record, Released, State

INTERVAL_S = 2.0
LONGEST_WAIT_S = 30.0
START_PATIENCE_S = 20.0

logger = logging.getLogger("nsa_lab")


class Sender:
    """Sends `record` every few seconds while something is unsent, less often in an outage, until it is unlocked."""

    def __init__(self, record: Record):
        self._record = record
        self._wake = threading.Event()
        self._closing = False
        self.fault: Exception | None = None
        self.outage: str | None = None
        self._thread = threading.Thread(target=self._run, name="nsa-lab-tracking", daemon=True)
        self._thread.start()

    def close(self, patience_s: float) -> bool:
        """Send what is left for at most `patience_s` seconds; True when all has arrived."""
        self._closing = True
        self._wake.set()
        self._thread.join(patience_s)
        return not self._record.pending

    def _run(self) -> None:
        wait = INTERVAL_S
        while True:
            self._wake.wait(wait)
            self._wake.clear()
            if self._record.released:
                return
            try:
                if self._record.pending:
                    store.send(self._record)
                wait = INTERVAL_S
                self._note(None)
            except store.Unreachable as error:
                wait = 1.0 if self._closing else min(2 * wait, LONGEST_WAIT_S)
                self._note(str(error))
            except Released:
                return
            except Exception as error:
                self.fault = error
                logger.warning("tracking stopped: %s; the record goes on in %s", error, self._record.directory)
                return
            if self._closing and not self._record.pending:
                return

    def _note(self, outage: str | None) -> None:
        """Say when the server goes away, and when it is back."""
        uri, directory = self._record.state.uri, self._record.directory
        if outage and not self.outage:
            logger.warning("tracking server %s is away (%s); recording in %s, trying on", uri, outage, directory)
            self._since = time.monotonic()
        elif self.outage and not outage:
            logger.warning("tracking server %s is back after %.0f s", uri, time.monotonic() - self._since)
        self.outage = outage


def send_within(record: Record, patience_s: float) -> None:
    """Send a record, trying again for `patience_s` seconds. Raises NsaLabError when the server stays away."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return store.send(record)
        except store.Unreachable as error:
            if isinstance(error, store.Denied) or time.monotonic() >= deadline:
                raise unsent(record, str(error)) from error
            time.sleep(1)


def unsent(record: Record, reason: str) -> NsaLabError:
    """The error that says what was kept, where, and how to send it."""
    return NsaLabError(
        f"tracking server {record.state.uri} does not take the run ({reason}); everything is kept in "
        f"{record.directory}: send it later with `nsa-lab push {record.directory}`, "
        "or set tracking.enabled=false"
    )


def annotate(directory: Path, tags: Mapping[str, Any]) -> None:
    """Set tags of a run whose process has ended; sent now or, its server away, by `push`."""

    def change(record: Record) -> bool:
        record.tags(tags)
        return True

    _amend(directory, change)


def finish_left(directory: Path) -> None:
    """Finish the record of a run that was killed when it was over; sent now or, its server away, by `push`."""
    _amend(directory, _settle)


def attach(directory: Path, files: Iterable[Path], folder: str) -> str | None:
    """Add `files` to the artifacts of the run in `directory`, under `folder`; None, or why they are not sent yet.

    Where there is no record, or one without tracking, there is nothing to send.
    """
    if not (directory / TRACKING).exists():
        return None
    record = Record.take(directory)
    if record is None:
        return f"another process records in {directory}; do it again when it has ended"
    try:
        for file in files:
            record.artifact(file, folder)
        if record.state.uri:
            send_within(record, 0)
    except NsaLabError as error:
        return str(error)
    finally:
        record.unlock()
    return None


def _amend(directory: Path, change: Callable[[Record], bool]) -> None:
    """Do `change` to the record in `directory` unless a live process has it, and send it where that returns True."""
    record = Record.take(Path(directory))
    if record is None:
        return
    try:
        if change(record) and record.state.uri:
            send_within(record, 0)
    except NsaLabError:
        # Not lost: the record stays pending, and `push` reports it.
        return
    finally:
        record.unlock()


def _settle(record: Record) -> bool:
    """Give a locked record its end, where its process is gone and left none: FINISHED with a summary, else KILLED.

    Returns whether it had to. Its end is when something was last written.
    """
    summary = record.directory / SUMMARY
    over = read_json(summary, "start over with training.resume=false").get("stopped") is False
    if record.state.status != "RUNNING" and not (over and record.state.status == "KILLED"):
        return False
    if record.all_tags.get("state") in ("running", "killed"):
        record.tags({"state": "finished" if over else "killed"})
    written = [file.stat().st_mtime_ns for file in (record.metrics_file, summary) if file.exists()]
    ended = max(written, default=0) // 1_000_000
    record.update(status="FINISHED" if over else "KILLED", ended=max(ended, record.state.started))
    return True


def push(directory: Path, uri: str | None = None) -> list[Path]:
    """Send every unsent record at or below `directory`, to `uri` where given; returns the directories sent.

    Records that a live process still writes are left alone. Raises NsaLabError when nothing is recorded
    there, when no record has a URI, or when the server does not answer.
    """
    # Parents lie above their children or beside them, and come first.
    found = sorted((file.parent for file in Path(directory).rglob(TRACKING)), key=_has_parent)
    if not found:
        raise NsaLabError(f"{directory} holds no record of a run; give a run directory, or one above it")
    sent, without_uri = [], 0
    for place in found:
        record = Record.take(place)
        if record is None:
            continue
        try:
            if not (uri or record.state.uri):
                without_uri += 1
            elif _push_one(record, uri, found):
                sent.append(place)
        finally:
            record.unlock()
    if without_uri == len(found):
        raise NsaLabError(f"{directory} was recorded without tracking; name a server with --uri")
    return sent


def _has_parent(directory: Path) -> tuple[bool, Path]:
    record = Record.load(directory)
    return record is not None and record.state.parent is not None, directory


def _moved(run_id: str | None, found: list[Path]) -> str | None:
    """The present id of the run that once was `run_id`, among the records in `found`."""
    for record in filter(None, map(Record.load, found) if run_id else ()):
        if run_id in (*record.state.earlier, record.state.run_id):
            return record.state.run_id
    return None


def _push_one(record: Record, uri: str | None, found: list[Path]) -> bool:
    old = record.state
    uri = uri and keep(uri)
    if uri and uri != old.uri:
        parent, earlier = _moved(old.parent, found), [*old.earlier, *([old.run_id] if old.run_id else [])]
        record.state = State(uri, old.experiment, old.run_name, parent, old.artifact_root, started=old.started)
        record.update(status=old.status, ended=old.ended, artifacts=old.artifacts, earlier=earlier)
    _settle(record)
    if not record.pending:
        return False
    send_within(record, START_PATIENCE_S)
    return True
