"""The trainings of a comparison as rows of a CSV: what was trained, what came out, and where the numbers come from."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nsa_lab.comparison.spec import MEASURED, START, TASK_ACCURACY, Training, is_measured
from nsa_lab.config import config_hash
from nsa_lab.errors import NsaLabError
from nsa_lab.files import write_csv

KEY = ("experiment", "variant", "seed", "config_hash")
ORIGIN = ("device", "cores", "threads", "python", "torch", "transformers", "commit", "code", "date")

Row = dict[str, str]
Key = tuple[str, ...]


def key_of(training: Training) -> Key:
    """What makes a training itself, as it stands in a row."""
    return training.experiment, training.variant, str(training.seed), config_hash(training.config)


def make_row(training: Training, metrics: Mapping[str, float], origin: Mapping[str, str]) -> Row:
    """The row of a finished training; a metric that the run did not report stays empty."""
    row = dict(zip(KEY, key_of(training), strict=True)) | {"steps": str(training.config.training.steps)}
    row |= {name: repr(metrics[name]) if name in metrics else "" for name in MEASURED}
    row |= {name: repr(value) for name, value in metrics.items() if name.startswith(TASK_ACCURACY)}
    return row | {name: origin[name] for name in ORIGIN}


def read_rows(file: Path) -> dict[Key, Row]:
    """The rows of a CSV by key, none where there is no file.

    Raises NsaLabError on a file of another kind, and names the line of a row that is damaged or there twice.
    """
    if not file.exists():
        return {}
    needed = {*KEY, "steps", *ORIGIN}
    try:
        with open(file, newline="") as stream:
            table = csv.DictReader(stream)
            rows, columns = list(table), set(table.fieldnames or needed)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise NsaLabError(f"{file} cannot be read as a CSV ({error}); name the runs.csv of a comparison") from error
    if not needed <= columns:
        lacks = ", ".join(sorted(needed - columns))
        raise NsaLabError(f"{file} holds no rows of a comparison (it lacks {lacks}); name another file")
    lines: dict[Key, int] = {}
    for line, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise NsaLabError(f"{file}:{line} has more or fewer cells than the first line; remove it or correct it")
        _check_numbers(f"{file}:{line}", row)
        if (first := lines.setdefault(tuple(row[name] for name in KEY), line)) != line:
            raise NsaLabError(f"{file}:{line} is the training of line {first} again; remove one of the two")
    return {tuple(row[name] for name in KEY): row for row in rows}


def _check_numbers(place: str, row: Row) -> None:
    for name in ("seed", "steps", *(name for name, value in row.items() if value and is_measured(name))):
        kind = int if name in ("seed", "steps") else float
        try:
            finite = math.isfinite(kind(row[name]))
        except (ValueError, TypeError):
            finite = False
        if not finite:
            raise NsaLabError(f"{place}: {name} is {row[name]!r}, not a number; correct the row")


def check_one_training_each(rows: Iterable[Row]) -> None:
    """Raise NsaLabError where two rows stand for one design and seed, or designs were trained for different steps."""
    hashes: dict[Key, str] = {}
    steps: dict[str, str] = {}
    for row in rows:
        name = f"{row['experiment']}, {row['variant']}, seed {row['seed']}"
        known = hashes.setdefault((row["experiment"], row["variant"], row["seed"]), row["config_hash"])
        if known != row["config_hash"]:
            raise NsaLabError(
                f"two configs trained as {name}: {known} and {row['config_hash']}; "
                "remove the rows of one, or write them into folders of their own (--out)"
            )
        if row["variant"] != START and steps.setdefault(row["experiment"], row["steps"]) != row["steps"]:
            raise NsaLabError(
                f"{name} took {row['steps']} steps, others {steps[row['experiment']]}; keep the rows of one length"
            )


def check_settings(file: Path, rows: Iterable[Row], trainings: Iterable[Training]) -> None:
    """Raise NsaLabError where a row of `file` is one of the `trainings` under other settings: tables would mix them."""
    wanted = {key_of(training)[:3]: key_of(training)[3] for training in trainings}
    for row in rows:
        experiment, variant, seed, there = (row[name] for name in KEY)
        if (here := wanted.get((experiment, variant, seed), there)) != there:
            raise NsaLabError(
                f"{file} holds {experiment}, {variant}, seed {seed} with other settings (hash {there}, now {here}); "
                "give these a folder of their own (output.dir=FOLDER; of ablate and compare also --out FOLDER)"
            )


def write_rows(file: Path, rows: Iterable[Row]) -> None:
    """Write rows sorted by key, so that a reader sees the old file or the new one."""
    ordered = sorted(rows, key=lambda row: (row["experiment"], row["variant"], int(row["seed"]), row["config_hash"]))
    file.parent.mkdir(parents=True, exist_ok=True)
    columns = [*KEY, "steps", *MEASURED, *ORIGIN]
    columns += sorted({name for row in ordered for name in row} - set(columns))  # tasks, and what was added by hand
    write_csv(file, [columns, *([row.get(name, "") for name in columns] for row in ordered)])


def in_order(names: Iterable[str], order: Sequence[str]) -> list[str]:
    """Distinct `names`, those in `order` first and in that order."""
    found = list(dict.fromkeys(names))
    return [name for name in order if name in found] + [name for name in found if name not in order]
