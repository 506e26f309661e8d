"""A lock over all sweeps of a study, on this machine and on others, for steps that belong together."""

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import sqlalchemy

from nsa_lab.files import locked
from nsa_lab.search.storage import AWAY, PatientStorage, file_of, patient

SILENT_MS = 120_000
"""How long the lock of a machine stands that has vanished without closing its connection."""

Lock = Callable[[], AbstractContextManager[None]]
logger = logging.getLogger("nsa_lab")


def study_lock(url: str, storage: Any, study: str) -> Lock:
    """What holds off all other sweeps of `study` in `storage`, opened at `url`, while a block runs; it does not nest.

    A file keeps its lock beside it, PostgreSQL in a transaction: it goes with its holder's process, and with a restart
    of the server. Other databases have none, which is said.
    """
    if (file := file_of(url)) is not None:
        # Optuna locks a journal by a link that is called as the journal and .lock, and waits where there is any file.
        return partial(locked, file.with_name(f"{file.name}.study.lock"))
    driver = sqlalchemy.make_url(url).drivername
    if not driver.startswith("postgresql"):
        logger.warning("%s has no lock between sweeps: start those that share a study one after another", driver)
        return nullcontext
    return AdvisoryLock(url, storage._backend, study).held


class AdvisoryLock:
    """PostgreSQL's, on a connection of its own; while the server is away `storage` and it wait together."""

    def __init__(self, url: str, storage: PatientStorage, study: str):
        self.storage = storage
        self.engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
        self.key = int.from_bytes(hashlib.blake2s(study.encode(), digest_size=8).digest(), "big", signed=True)

    @property
    def given_up(self) -> bool:
        return self.storage.given_up

    @given_up.setter
    def given_up(self, value: bool) -> None:
        self.storage.given_up = value

    @contextmanager
    def held(self) -> Iterator[None]:
        connection = self._take()
        try:
            yield
        finally:
            try:
                connection.close()  # rolls back, and so gives the lock up
            except AWAY:
                logger.warning("the storage went away while a sweep held its lock")

    @patient
    def _take(self) -> sqlalchemy.Connection:
        connection = self.engine.connect()
        try:
            connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = {SILENT_MS}")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({self.key})")
        except BaseException:
            connection.close()
            raise
        return connection
