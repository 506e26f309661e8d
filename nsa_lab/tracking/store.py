"""MLflow's side of a run's record: where it goes, and how it gets there. Nothing else imports MLflow."""

import functools
import logging
import os
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from nsa_lab.config import ExperimentConfig
from nsa_lab.errors import NsaLabError, first_line
from nsa_lab.files import locked
from nsa_lab.redact import SOURCE, hide, keep, reveal
from nsa_lab.tracking.accepted import PARAM_LENGTH, TAG_LENGTH, safe_name, safe_value
from nsa_lab.tracking.page import experiment_tags
from nsa_lab.tracking.record import Record

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
FATAL_CODES = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST")
DENIED_CODES = ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED")
DENIED_BY_DATABASE = re.compile(r"authentication failed|access denied|login failed|no password supplied", re.I)
SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")
SQLITE, SERVERS, ARTIFACTS = "sqlite:///", ("http", "databricks"), "mlartifacts"
PER_BATCH = 100
# A chart for each branch of each layer buries the rest; the record keeps them, and a picture of the run shows them.
KEPT_HERE = "gate/layer"
REASON_LENGTH = 120
T = TypeVar("T")

logger = logging.getLogger("nsa_lab")


class Unreachable(Exception):
    """The server does not answer now; a later try may succeed."""


class Denied(Unreachable):
    """The server refuses the user or the password; while a run goes on, a later try may succeed."""


def tracking_uri(config: ExperimentConfig) -> str:
    """The MLflow tracking URI of `config`, without its password: its own, or the SQLite file in the output folder."""
    if config.tracking.uri:
        return keep(config.tracking.uri)
    return f"{SQLITE}{Path(config.output.dir).resolve() / 'mlflow.db'}"


def artifact_root(config: ExperimentConfig) -> str:
    """Where artifacts go whose store is a database: the output folder of its first run."""
    return (Path(config.output.dir).resolve() / ARTIFACTS).as_uri()


def prepare_store(config: ExperimentConfig) -> str | None:
    """Create the tracking database and the experiment where missing; safe from many processes at once.

    Returns the experiment's id, or None without tracking.
    Raises NsaLabError when the server does not answer, the URI is wrong or the database is damaged.
    """
    if not config.tracking.enabled:
        return None
    uri = tracking_uri(config)
    try:
        return _experiment_id(uri, config.tracking.experiment, artifact_root(config))
    except Denied as error:
        raise NsaLabError(
            f"tracking server {uri} refuses the user or the password ({error}); correct tracking.uri, "
            "or set tracking.enabled=false"
        ) from error
    except Unreachable as error:
        raise NsaLabError(
            f"tracking server {uri} does not answer ({error}); start it, correct tracking.uri, "
            "or set tracking.enabled=false"
        ) from error


def send(record: Record) -> None:
    """Bring MLflow up to date with `record`. May be repeated: nothing is logged twice.

    Raises Unreachable when a later try may do, NsaLabError when it will not.
    """
    uri = str(record.state.uri)
    _guarded(uri, lambda: _send_all(_client(uri), record))


def _send_all(client: Any, record: Record) -> None:
    from mlflow.entities import Metric, Param, RunTag

    run_id = record.state.run_id or _create_run(client, record)
    with record.guard:
        params, tags = list(record.all_params.items()), dict(record.all_tags)
    for start in range(record.state.sent_params, len(params), PER_BATCH):
        some = params[start : start + PER_BATCH]
        _log(client, record, params=[Param(safe_name(k), safe_value(v, PARAM_LENGTH)) for k, v in some])
        record.update(sent_params=start + len(some))
    changed = [
        RunTag(safe_name(k), safe_value(v, TAG_LENGTH)) for k, v in tags.items() if record.state.sent_tags.get(k) != v
    ]
    for start in range(0, len(changed), PER_BATCH):
        _log(client, record, tags=changed[start : start + PER_BATCH])
    if changed:
        record.update(sent_tags=tags)
    for lines, offset in record.unsent_metrics():
        metrics = [
            Metric(safe_name(k), v, line["time"], line["step"])
            for line in lines
            for k, v in line["metrics"].items()
            if not k.startswith(KEPT_HERE)
        ]
        _log(client, record, metrics=metrics)
        record.update(sent_metrics=offset)
    for path, folder in record.state.artifacts[record.state.sent_artifacts :]:
        _send_artifact(client, run_id, record.directory / path, folder or None)
        record.update(sent_artifacts=record.state.sent_artifacts + 1)
    status = record.state.status
    if status != record.state.sent_status:
        if status == "RUNNING":
            client.update_run(run_id, status=status)
        else:
            client.set_terminated(run_id, status, record.state.ended)
        record.update(sent_status=status)


def _log(client: Any, record: Record, **items: list[Any]) -> None:
    """Log a batch of one kind; what the server will not have of it is said and left out, so that the rest arrives."""
    from mlflow.exceptions import MlflowException

    try:
        client.log_batch(record.state.run_id, **items)
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        ((kind, entries),) = items.items()
        if len(entries) == 1:
            said = "tracking refuses %s %s (%s); it is kept in %s"
            logger.warning(said, kind.removesuffix("s"), entries[0].key, _reason(error), record.directory)
            return
        for entry in entries:
            _log(client, record, **{kind: [entry]})


def _create_run(client: Any, record: Record) -> str:
    """Create the run in MLflow, or find it when an earlier answer was lost."""
    state = record.state
    root = state.artifact_root or (record.directory.resolve().parent / ARTIFACTS).as_uri()
    experiment = _experiment_id(str(state.uri), state.experiment, root)
    found = client.search_runs([experiment], filter_string=f"tags.record = '{state.record_id}'", max_results=1)
    if found:
        run_id = str(found[0].info.run_id)
    else:
        tags = {"record": state.record_id} | ({"mlflow.parentRunId": state.parent} if state.parent else {})
        run_id = str(client.create_run(experiment, state.started, tags, state.run_name).info.run_id)
    record.update(run_id=run_id, sent_status=None)
    return run_id


def _send_artifact(client: Any, run_id: str, path: Path, folder: str | None) -> None:
    if path.is_dir():
        client.log_artifacts(run_id, str(path), folder)
    elif path.exists():
        client.log_artifact(run_id, str(path), folder)
    else:
        logger.warning("artifact %s is gone and was not sent", path)


def _experiment_id(uri: str, name: str, root: str) -> str:
    """The id of experiment `name`, created where missing; artifacts of a database go below `root`."""
    location = None if uri.startswith(SERVERS) else root
    if uri.startswith(SQLITE):
        location = (_sqlite_file(uri).parent / ARTIFACTS).as_uri()
    return _guarded(uri, lambda: _get_or_create(_client(uri), name, location))


def _get_or_create(client: Any, name: str, location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=experiment_tags()))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)
    if experiment.lifecycle_stage == "deleted":
        raise NsaLabError(f"MLflow experiment {name!r} is deleted; restore it or set tracking.experiment to another")
    for key in experiment_tags().keys() - experiment.tags.keys():
        client.set_experiment_tag(experiment.experiment_id, key, experiment_tags()[key])
    return str(experiment.experiment_id)


@functools.cache
def _client(uri: str) -> Any:
    hidden, uri = uri, reveal(uri) or ""
    if not uri:
        raise NsaLabError(
            f"{hidden} lacks its password, which is kept out of files; give the whole URI in {SOURCE}, "
            f"as in {SOURCE}=SCHEME://USER:PASSWORD@HOST nsa-lab ..."
        )
    if uri.partition(":")[0].partition("+")[0] not in SCHEMES:
        raise NsaLabError(f"tracking.uri {uri} is no tracking store; use one of {', '.join(SCHEMES)} (sqlite:///FILE)")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    logging.getLogger("alembic").setLevel(logging.WARNING)
    # It logs what it raises, with a traceback.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    if not uri.startswith(SQLITE):
        if not uri.startswith(SERVERS):
            _try_database(uri)
        return MlflowClient(tracking_uri=uri)
    file = _sqlite_file(uri)
    file.parent.mkdir(parents=True, exist_ok=True)
    # The first client creates the tables; several at once would all try to.
    with locked(file.with_name(f"{file.name}.lock")):
        return MlflowClient(tracking_uri=uri)


def _try_database(uri: str) -> None:
    """Connect once, since MLflow tries for minutes whatever the fault. Raises NsaLabError without the driver."""
    import sqlalchemy

    try:
        engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
        with engine.connect():
            pass
    except (ImportError, sqlalchemy.exc.NoSuchModuleError) as error:
        raise NsaLabError(
            f"tracking.uri {uri} needs a database driver that is not installed ({_reason(error)}); install it with pip"
        ) from error


def _sqlite_file(uri: str) -> Path:
    return Path(uri.removeprefix(SQLITE)).resolve()


def _guarded(uri: str, action: Callable[[], T]) -> T:
    """Do `action` and sort its failures: Unreachable may pass, NsaLabError will not."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return action()
    except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
        if getattr(error, "error_code", None) in DENIED_CODES or DENIED_BY_DATABASE.search(str(error)):
            raise Denied(_reason(error)) from error
        fatal = getattr(error, "error_code", None) in FATAL_CODES
        if fatal or (uri.startswith("sqlite") and "locked" not in str(error)):
            raise NsaLabError(f"tracking store {uri} refused: {_reason(error)}; see tracking.uri") from error
        raise Unreachable(_reason(error)) from error


def _reason(error: Exception) -> str:
    """Why, in few words, for a line of ours: what the system said, else the first sentence."""
    line = hide(first_line(error))
    system = re.search(r"\[Errno -?\d+\] [\w -]+", line)
    return textwrap.shorten(system.group() if system else line.partition(". ")[0], REASON_LENGTH, placeholder=" ...")
