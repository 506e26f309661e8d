"""The MLflow run above those of a pool's jobs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nsa_lab import tracking
from nsa_lab.config import ExperimentConfig
from nsa_lab.files import TRACKING, write_text
from nsa_lab.redact import hide


@contextmanager
def parent_run(
    config: ExperimentConfig, directory: Path, tags: Mapping[str, str], *, children: Path, **options: Any
) -> Iterator[tracking.Tracker]:
    """Open the run in `directory`, with the `options` of Tracker.open; at the end send all records in `children`.

    Raises NsaLabError where the tracking server does not answer.
    """
    tracking.prepare_store(config)
    with tracking.Tracker.open(config, directory, tags=tags, describe=False, **options) as tracker:
        yield tracker
    if config.tracking.enabled and any(children.rglob(TRACKING)):
        tracking.push(children)


def without_passwords(file: Path, directory: Path) -> Path:
    """A copy of the Python file that was asked to run, in `directory`, with *** for the passwords of its URIs."""
    copy = directory / "asked" / file.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    write_text(copy, hide(file.read_text()))
    return copy
