"""Opening a local record, and sending records whose process has ended. `send` carries one to its server."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nsa_lab.errors import NsaLabError
from nsa_lab.tracking.record import Record, State, now_ms, set_aside
from nsa_lab.tracking.sender import Unreachable

Send = Callable[[Record], None]


def open_record(directory: Path, fresh: State, run_id: str | None) -> Record:
    """The locked record of `directory`: continued if it is run `run_id` or was left unfinished, else `fresh`.

    A finished run that stands there keeps its files under numbered names. Raises NsaLabError when another
    process records in `directory`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    record = Record(directory, fresh)
    if not record.lock():
        raise NsaLabError(f"another process records a run in {directory}; wait for it or choose another name")
    old = Record.load(directory)
    if old is not None and _continues(old.state, fresh, run_id):
        record.state = old.state
        record.update(status="RUNNING", ended=None)
    elif old is not None and run_id is None:
        set_aside(directory)
        record.params, record.tags = {}, {}
        record.update()
    else:
        record.update(run_id=run_id)
    record.repair()
    return record


def _continues(old: State, fresh: State, run_id: str | None) -> bool:
    if (old.uri, old.experiment) != (fresh.uri, fresh.experiment):
        return False
    return old.run_id == run_id if run_id else old.status != "FINISHED"


def annotate_record(directory: Path, tags: Mapping[str, Any], status: str | None, send: Send) -> None:
    """Set tags and status of a run whose process has ended; what cannot be sent now is left to `push`."""
    record = Record.load(directory)
    if record is None or not record.lock():
        return
    try:
        record.add_tags(tags)
        if status is not None:
            record.update(status=status, ended=now_ms())
        if record.state.uri:
            send_within(record, send, 0)
    except NsaLabError:
        # Not lost: the record stays pending, and `push` reports it.
        return
    finally:
        record.unlock()


def push_records(directory: Path, uri: str | None, send: Send, patience_s: float) -> list[Path]:
    """Send the pending records at or below `directory`, to `uri` where given; the directories sent."""
    found = sorted(file.parent for file in directory.rglob("tracking.json"))
    if not found:
        raise NsaLabError(f"{directory} holds no record of a run; give a run directory, or one above it")
    sent = []
    for place in found:
        record = Record.load(place)
        if record is None or not record.lock(patience_s=0):
            continue
        try:
            if _push_one(record, uri, send, patience_s):
                sent.append(place)
        finally:
            record.unlock()
    return sent


def _push_one(record: Record, uri: str | None, send: Send, patience_s: float) -> bool:
    old = record.state
    if not (uri or old.uri):
        raise NsaLabError(f"{record.directory} was recorded without tracking; name a server with --uri")
    if uri and uri != old.uri:
        record.state = State(uri, old.experiment, old.run_name, parent=None, started=old.started)
        record.update(status=old.status, ended=old.ended, artifacts=old.artifacts)
    if old.status == "RUNNING":
        record.add_tags({"state": "killed"})
        record.update(status="KILLED", ended=now_ms())
    if not record.pending:
        return False
    send_within(record, send, patience_s)
    return True


def send_within(record: Record, send: Send, patience_s: float) -> None:
    """Send a record, trying again for `patience_s` seconds. Raises NsaLabError when the server stays away."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return send(record)
        except Unreachable as error:
            if time.monotonic() >= deadline:
                raise unsent(record, str(error)) from error
            time.sleep(1)


def unsent(record: Record, reason: str) -> NsaLabError:
    """The error that says what was kept, where, and how to send it."""
    return NsaLabError(
        f"tracking server {record.state.uri} does not take the run ({reason}); everything is kept in "
        f"{record.directory}: send it later with `nsa-lab push {record.directory}`, "
        "or set tracking.enabled=false"
    )
