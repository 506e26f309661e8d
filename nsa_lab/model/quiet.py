"""Silences transformers where we call it and say ourselves what matters, and nowhere else."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as theirs

REPORT = "LOAD REPORT"
LOADS = "transformers.modeling_utils"
"""Whose logger gives the report of weights that are missing or too many."""


@contextmanager
def without_bars() -> Iterator[None]:
    """No progress bars."""
    shown = theirs.is_progress_bar_enabled()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            theirs.enable_progress_bar()


@contextmanager
def without_report() -> Iterator[None]:
    """No report of what was loaded, unless the block fails, whose error may refer to it."""
    logger, held = logging.getLogger(LOADS), _Held()
    logger.addFilter(held)
    try:
        yield
    except Exception:
        logger.removeFilter(held)
        for record in held.records:
            logger.handle(record)
        raise
    finally:
        logger.removeFilter(held)


class _Held(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def filter(self, record: logging.LogRecord) -> bool:
        if REPORT not in record.getMessage():
            return True
        self.records.append(record)
        return False
