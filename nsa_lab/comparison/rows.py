"""The trainings of a comparison as rows of a CSV: what was trained, what came out, and where the numbers come from."""

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nsa_lab.comparison.spec import Training
from nsa_lab.config import config_hash
from nsa_lab.errors import NsaLabError

KEY = ("experiment", "variant", "seed", "config_hash")
ORIGIN = ("device", "cores", "threads", "python", "torch", "transformers", "commit", "code", "date")
MEASURED = (
    "val/accuracy",
    "val/loss",
    "train/loss",
    "budget/keys_per_query",
    "budget/keys_per_query_with_compressed",
    "throughput/seconds_per_step",
    "partition/share_of_step",
    "model/parameters",
)

Row = dict[str, str]
Key = tuple[str, ...]


def key_of(training: Training) -> Key:
    """What makes a training itself, as it stands in a row."""
    return training.experiment, training.variant, str(training.seed), config_hash(training.config)


def make_row(training: Training, metrics: Mapping[str, float], origin: Mapping[str, str]) -> Row:
    """The row of a finished training; a metric that the run did not report stays empty."""
    row = dict(zip(KEY, key_of(training), strict=True)) | {"steps": str(training.config.training.steps)}
    row |= {name: repr(metrics[name]) if name in metrics else "" for name in MEASURED}
    return row | {name: origin[name] for name in ORIGIN}


def read_rows(file: Path) -> dict[Key, Row]:
    """The rows of a CSV by key, none where there is no file. Raises NsaLabError on a file of another kind."""
    if not file.exists():
        return {}
    with open(file, newline="") as stream:
        rows = list(csv.DictReader(stream))
    if rows and not set(KEY) <= set(rows[0]):
        raise NsaLabError(f"{file} holds no rows of a comparison (columns {', '.join(KEY)}); name another file")
    return {tuple(row[name] for name in KEY): row for row in rows}


def write_rows(file: Path, rows: Iterable[Row]) -> None:
    """Write rows sorted by key, so that a reader sees the old file or the new one."""
    ordered = sorted(rows, key=lambda row: (row["experiment"], row["variant"], int(row["seed"]), row["config_hash"]))
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.name}.unfinished")
    with open(unfinished, "w", newline="") as stream:
        table = csv.DictWriter(stream, [*KEY, "steps", *MEASURED, *ORIGIN], lineterminator="\n")
        table.writeheader()
        table.writerows(ordered)
    os.replace(unfinished, file)


def in_order(names: Iterable[str], order: Sequence[str]) -> list[str]:
    """Distinct `names`, those in `order` first and in that order."""
    found = list(dict.fromkeys(names))
    return [name for name in order if name in found] + [name for name in found if name not in order]
