"""A background thread that carries a local record to its tracking server, through outages."""

import logging
import threading
import time
from collections.abc import Callable

from nsa_lab.tracking.record import Record

INTERVAL_S = 2.0
LONGEST_WAIT_S = 30.0

logger = logging.getLogger("nsa_lab")


class Unreachable(Exception):
    """The server does not answer now; a later try may succeed."""


class Sender:
    """Calls `send(record)` every few seconds while something is unsent, less often in an outage."""

    def __init__(self, record: Record, send: Callable[[Record], None]):
        self._record = record
        self._send = send
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
            try:
                if self._record.pending:
                    self._send(self._record)
                wait = INTERVAL_S
                self._say_back()
            except Unreachable as error:
                wait = 1.0 if self._closing else min(2 * wait, LONGEST_WAIT_S)
                self._say_away(str(error))
            except Exception as error:
                self.fault = error
                logger.warning("tracking stopped: %s; the record goes on in %s", error, self._record.directory)
                return
            if self._closing and not self._record.pending:
                return

    def _say_away(self, reason: str) -> None:
        if self.outage is None:
            state, directory = self._record.state, self._record.directory
            logger.warning("tracking server %s is away (%s); recording in %s, trying on", state.uri, reason, directory)
            self._away_since = time.monotonic()
        self.outage = reason

    def _say_back(self) -> None:
        if self.outage is not None:
            away = time.monotonic() - self._away_since
            logger.warning("tracking server %s is back after %.0f s", self._record.state.uri, away)
        self.outage = None
