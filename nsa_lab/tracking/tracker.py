"""What a run calls: its record on disk, and a thread that carries it to MLflow, so that a server that goes away costs
nothing but patience."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from nsa_lab.config import ExperimentConfig
from nsa_lab.errors import NsaLabError
from nsa_lab.files import is_full
from nsa_lab.tracking.record import Record, State, now_ms
from nsa_lab.tracking.sender import START_PATIENCE_S, Sender, send_within, unsent
from nsa_lab.tracking.store import artifact_root, tracking_uri
from nsa_lab.tracking.tags import describe_run, origin_tags

FINISH_PATIENCE_S = 60.0
TRIAL_FINISH_PATIENCE_S = 10.0
Status = Literal["FINISHED", "FAILED", "KILLED"]

logger = logging.getLogger("nsa_lab")


class Tracker(Record):
    """Records one run. Made by `open`; every call returns at once, only `finish` waits for the server.

    As a context manager it finishes the run at the end: FINISHED, KILLED after KeyboardInterrupt, else FAILED.
    """

    sender: Sender | None = None
    finished = False

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

        With `again` a finished one goes on too. Unless `describe` is False the config, the uncommitted diff and tags
        of the design are recorded. The run is called `tags["mlflow.runName"]`, else `config.name`. One without a
        `parent` refuses to start when its server does not answer; one with a parent records on and sends later.
        Raises NsaLabError on that, on a changed param, and when another process records in `directory`.
        """
        tags = dict(tags or {})
        uri = tracking_uri(config) if config.tracking.enabled else None
        name = str(tags.get("mlflow.runName", config.name))
        fresh = State(uri, config.tracking.experiment, name, parent, artifact_root(config))
        tracker = cls.begin(Path(directory), fresh, run_id=run_id, again=again)
        try:
            tracker.tags({"state": "running", **origin_tags(), **tags})
            if describe:
                describe_run(tracker, config)
            if uri and parent is None:
                send_within(tracker, START_PATIENCE_S)
        except BaseException:
            tracker.unlock()
            raise
        tracker.sender = Sender(tracker) if uri else None
        return tracker

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None while the server has not been reached, and without tracking."""
        return self.state.run_id

    def finish(self, status: Status = "FINISHED") -> None:
        """Close the run and send what is left, once. The tag `state` follows `status` unless set before.

        Raises NsaLabError when the server stays away; a run with a parent leaves that to `push`.
        """
        if self.finished:
            return
        self.finished = True
        alone = self.state.parent is None
        try:
            if self.all_tags.get("state") == "running":
                self.tags({"state": status.lower()})
            self.update(status=status, ended=now_ms())
            patience = FINISH_PATIENCE_S if alone else TRIAL_FINISH_PATIENCE_S
            sent = self.sender is None or self.sender.close(patience)
        finally:
            self.unlock()
        if self.sender and alone and not sent:
            raise unsent(self, str(self.sender.fault or self.sender.outage or "too slow"))

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, first: BaseException | None, _: object) -> None:
        if kind is None:
            return self.finish()
        try:
            self.finish("KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED")
        except (NsaLabError, OSError) as second:
            if not (is_full(first) and is_full(second)):  # which is said already
                logger.warning("the tracking record was not closed: %s", second)
        return None


def last_run_id(directory: Path) -> str | None:
    """The MLflow run id recorded in `directory`, to continue it with `Tracker.open(run_id=...)`."""
    record = Record.load(Path(directory))
    return record.state.run_id if record else None
