"""Where studies are kept: SQLite by default, any Optuna storage by URL, a journal file as journal:///PATH.

Databases keep a heartbeat of every trial in training, so that a sweep can queue those of a dead host again. A journal
file has none: there the trials of another host are never touched.
"""

import difflib
import functools
import inspect
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages.journal import JournalFileBackend

from nsa_lab.errors import NsaLabError, first_line
from nsa_lab.files import locked
from nsa_lab.search.recovery import GRACE_S, HEARTBEAT_S, queue_stale

BUSY_TIMEOUT_S = 120
PATIENCE_S = 300.0
RETRY_EVERY_S = 2.0
TRIES = 3
AWAY = (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError, optuna.exceptions.StorageInternalError)

logger = logging.getLogger("nsa_lab")


class PatientStorage(optuna.storages.RDBStorage):
    """A database on a server; what fails because it is away or cut the connection is tried again for minutes.

    Once that was in vain it is only asked once for whatever else, until it answers.
    """

    given_up = False


def patient(call: Callable[..., Any]) -> Callable[..., Any]:
    """A method that is tried again for PATIENCE_S while its database is away, until it has `given_up` once."""

    @functools.wraps(call)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        storage = arguments[0]
        deadline, tried = time.monotonic() + (0.0 if storage.given_up else PATIENCE_S), False
        while True:
            try:
                answer = call(*arguments, **options)
                storage.given_up = False
                return answer
            except optuna.exceptions.UpdateFinishedTrialError:
                if not tried:
                    raise
                return True  # the first try arrived, and its answer was lost
            except AWAY as error:
                if time.monotonic() > deadline:
                    storage.given_up = True
                    raise
                if not tried:
                    logger.warning("the storage is away (%s); trying again for %.0f s", _reason(error), PATIENCE_S)
                tried = True
                time.sleep(RETRY_EVERY_S)

    return wrapped


for _name, _method in vars(optuna.storages.RDBStorage).items():
    if inspect.isfunction(_method) and not _name.startswith("__"):
        setattr(PatientStorage, _name, patient(_method))


def default_storage(output: str | Path) -> str:
    """The URL of the SQLite file that keeps the studies of an output folder."""
    return f"sqlite:///{Path(output).resolve() / 'studies.db'}"


def open_storage(url: str) -> Any:
    """The Optuna storage at `url`, created where missing.

    Raises NsaLabError when the URL is malformed, its driver missing, its server away or its file damaged.
    """
    try:
        if (file := file_of(url)) is not None:
            return _journal(file) if url.startswith("journal:") else optuna.storages.get_storage(_sqlite(url))
        return optuna.storages.get_storage(_on_a_server(url))
    except sqlalchemy.exc.ArgumentError as error:
        raise NsaLabError(
            f"storage {url!r} is no URL; write sqlite:///FILE, journal:///FILE or postgresql://USER@HOST/NAME"
        ) from error
    except (ImportError, sqlalchemy.exc.NoSuchModuleError) as error:
        raise NsaLabError(f"storage {url} needs a database driver that is not installed ({error})") from error
    except (sqlalchemy.exc.SQLAlchemyError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise NsaLabError(f"storage {url} cannot be opened ({_reason(error)}); correct --storage") from error


def file_of(url: str) -> Path | None:
    """The file that the storage at `url` is kept in; None for one on a server."""
    if url.startswith("journal:"):
        return Path(url.removeprefix("journal://").removeprefix("journal:")).resolve()
    return Path(url.removeprefix("sqlite:///")).resolve() if url.startswith("sqlite:///") else None


def load_study(storage: Any, name: str) -> optuna.Study:
    """A study by name. Raises NsaLabError that lists the studies there are."""
    known = optuna.get_all_study_names(storage)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise NsaLabError(f"study {name!r} does not exist; {hint}known: {', '.join(known) or 'none yet'}")
    return optuna.load_study(study_name=name, storage=storage)


def _journal(path: Path) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True)
    return optuna.storages.JournalStorage(JournalFileBackend(str(path)))


@contextmanager
def storage_faults(url: str) -> Iterator[None]:
    """Turn what a storage raises in the block into an NsaLabError that names it."""
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise NsaLabError(
            f"storage {url}: {_reason(error)}; what was trained is kept, and the same command goes on"
        ) from error


def _database(url: str, kind: Any = optuna.storages.RDBStorage, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        beats = {"heartbeat_interval": HEARTBEAT_S, "grace_period": GRACE_S}
        return kind(url, **beats, heartbeat_stale_trial_callback=queue_stale, **options)


def _on_a_server(url: str) -> Any:
    """Two that open an empty database at once both make its tables, and one is refused: by then they are there."""
    for left in reversed(range(TRIES)):
        try:
            return _database(url, PatientStorage, engine_kwargs={"pool_pre_ping": True})
        except (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError):
            if not left:
                raise
            time.sleep(RETRY_EVERY_S)
    return None


def _sqlite(url: str) -> Any:
    file = file_of(url)
    assert file is not None
    file.parent.mkdir(parents=True, exist_ok=True)
    options = {"connect_args": {"timeout": BUSY_TIMEOUT_S}}
    with locked(file.with_name(f"{file.name}.lock")):
        storage = _database(url, engine_kwargs=options)
        with storage.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
    _serialise(storage.engine)
    return storage


def _serialise(engine: Any) -> None:
    """Take SQLite's write lock at the start of every transaction.

    Optuna reads a trial's state and then writes it. SQLite has no row locks, so two processes could both take
    one trial, or fail at once with "database is locked", the timeout notwithstanding.
    """
    engine.dispose()

    @sqlalchemy.event.listens_for(engine, "connect")
    def _manual(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @sqlalchemy.event.listens_for(engine, "begin")
    def _immediate(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _reason(error: Exception) -> str:
    while getattr(error, "orig", None) is None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return first_line(getattr(error, "orig", None) or error)
