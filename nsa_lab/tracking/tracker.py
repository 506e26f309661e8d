"""What a run calls. It writes to the run's directory, and a thread carries that to MLflow, so that a server that goes
away costs nothing but patience; `push` sends a directory later."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from nsa_lab.config import ExperimentConfig
from nsa_lab.errors import NsaLabError
from nsa_lab.tracking.record import Record, State, now_ms
from nsa_lab.tracking.sender import START_PATIENCE_S, Sender, send_within, unsent
from nsa_lab.tracking.store import tracking_uri
from nsa_lab.tracking.tags import describe_run, origin_tags

FINISH_PATIENCE_S = 60.0
TRIAL_FINISH_PATIENCE_S = 10.0
Status = Literal["FINISHED", "FAILED", "KILLED"]

logger = logging.getLogger("nsa_lab")


class Tracker:
    """Records one run. Made by `open`; every call returns at once, only `finish` waits for the server.

    As a context manager it finishes the run at the end: FINISHED, KILLED after KeyboardInterrupt, else FAILED.
    """

    def __init__(self, record: Record, *, strict: bool):
        self._record = record
        self._strict = strict
        self._finished = False
        self._sender = Sender(record) if record.state.uri else None

    @classmethod
    def open(
        cls,
        config: ExperimentConfig,
        directory: Path,
        *,
        tags: Mapping[str, Any] | None = None,
        parent: str | None = None,
        run_id: str | None = None,
        again: bool = False,
        describe: bool = True,
    ) -> "Tracker":
        """Start the record of a run in `directory`, or continue run `run_id`, or one left unfinished there.

        With `again` a finished one goes on too. The config, the commit, the uncommitted diff and tags of design
        and origin are recorded here unless `describe` is False. The run is called `tags["mlflow.runName"]`, else
        `config.name`. A run without a `parent` refuses to start when its server does not answer; one with a parent
        records on and sends later.
        Raises NsaLabError on that, on a changed param, and when another process records in `directory`.
        """
        tags = dict(tags or {})
        uri = tracking_uri(config) if config.tracking.enabled else None
        name = str(tags.get("mlflow.runName", config.name))
        fresh = State(uri, config.tracking.experiment, name, parent)
        record = Record.open(Path(directory), fresh, run_id=run_id, again=again)
        try:
            record.add_tags({"state": "running", **origin_tags(), **tags})
            if describe:
                describe_run(record, config)
            if uri and parent is None:
                send_within(record, START_PATIENCE_S)
        except BaseException:
            record.unlock()
            raise
        return cls(record, strict=parent is None)

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None while the server has not been reached, and without tracking."""
        return self._record.state.run_id

    def params(self, flat: Mapping[str, Any]) -> None:
        """Record params, without the incidental ones (nsa_lab.config). Raises NsaLabError on a changed one."""
        self._record.add_params(flat)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record scalars at an optimiser step."""
        self._record.add_metrics(values, step)

    def tags(self, mapping: Mapping[str, Any]) -> None:
        """Set tags; a tag may change."""
        self._record.add_tags(mapping)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Record a file or a folder of files, under `folder` of the run's artifacts."""
        self._record.add_artifact(Path(path), folder)

    def finish(self, status: Status = "FINISHED") -> None:
        """Close the run and send what is left, once. The tag `state` follows `status` unless set before.

        Raises NsaLabError when the server stays away; a run with a parent leaves that to `push`.
        """
        if self._finished:
            return
        self._finished = True
        try:
            if self._record.tags.get("state") == "running":
                self._record.add_tags({"state": status.lower()})
            self._record.update(status=status, ended=now_ms())
            patience = FINISH_PATIENCE_S if self._strict else TRIAL_FINISH_PATIENCE_S
            sent = self._sender is None or self._sender.close(patience)
        finally:
            self._record.unlock()
        if not sent and self._strict and self._sender is not None:
            raise unsent(self._record, str(self._sender.fault or self._sender.outage or "too slow"))

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            return self.finish()
        try:
            self.finish("KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED")
        except (NsaLabError, OSError) as second:
            logger.warning("the tracking record was not closed: %s", second)
        return None


def last_run_id(directory: Path) -> str | None:
    """The MLflow run id recorded in `directory`, to continue it with `Tracker.open(run_id=...)`."""
    record = Record.load(Path(directory))
    return record.state.run_id if record else None
