"""`nsa-lab compare`: train every design of a comparison with every seed, and say what the differences are worth."""

import time
from collections.abc import Sequence
from pathlib import Path

from nsa_lab.comparison.crew import Outcome, logs_of, train_all
from nsa_lab.comparison.report import print_tables, write_tables
from nsa_lab.comparison.rows import Key, Row, key_of, make_row, read_rows, write_rows
from nsa_lab.comparison.spec import Comparison, Training, chosen, load_comparison, trainings
from nsa_lab.errors import NsaLabError

ROWS = "runs.csv"


def compare(
    file: Path,
    *,
    overrides: Sequence[str] = (),
    variants: Sequence[str] = (),
    seeds: int | None = None,
    workers: int = 1,
    minutes: float | None = None,
    out: Path | None = None,
) -> Path:
    """Train what `out`/runs.csv does not hold yet, write tables beside it, and return `out`.

    `out` is by default {output.dir}/comparisons/{name of the comparison}. After `minutes` no training is started any
    more. Raises NsaLabError where a training failed, after the tables of the others have been written.
    """
    comparison = load_comparison(file)
    wanted = trainings(comparison, *chosen(comparison, variants, seeds), overrides)
    out = out or wanted[0].directory.parent
    rows = read_rows(out / ROWS)
    missing = [training for training in wanted if key_of(training) not in rows]
    logs = f"; what they print: {logs_of(missing)}" if missing else ""
    print(f"{len(wanted)} trainings, {len(wanted) - len(missing)} done before, {workers} workers{logs}", flush=True)
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    faults = _train(missing, rows, workers, deadline, out) if missing else []
    mine = [rows[key] for key in map(key_of, wanted) if key in rows]
    if mine:
        _show(comparison, mine, out)
    if len(mine) + len(faults) < len(wanted):
        left = len(wanted) - len(mine) - len(faults)
        print(f"{left} of {len(wanted)} trainings were not started in {minutes:g} minutes; the same command does them")
    if faults:
        raise NsaLabError(f"{len(faults)} of {len(wanted)} trainings failed; the first: {faults[0]}")
    return out


def _train(
    missing: Sequence[Training], rows: dict[Key, Row], workers: int, deadline: float | None, out: Path
) -> list[str]:
    """Train, adding to `rows` and their file as trainings end; returns the faults."""
    faults = []
    for number, outcome in enumerate(train_all(missing, workers, deadline), start=1):
        print(f"{number}/{len(missing)}  {_line(outcome)}", flush=True)
        if outcome.fault is not None:
            faults.append(f"{outcome.training.config.name}: {outcome.fault}")
            continue
        rows[key_of(outcome.training)] = make_row(outcome.training, outcome.metrics, outcome.origin)
        write_rows(out / ROWS, rows.values())
    return faults


def _line(outcome: Outcome) -> str:
    training = outcome.training
    name = f"{training.experiment:<10} {training.variant:<12} seed {training.seed:<4}"
    if outcome.fault is not None:
        return f"{name} failed: {outcome.fault}"
    measured = f"accuracy {outcome.metrics['val/accuracy']:.1%}  loss {outcome.metrics['val/loss']:.4f}"
    return f"{name} {measured}  {outcome.seconds:.0f} s"


def _show(comparison: Comparison, rows: Sequence[Row], out: Path) -> None:
    print_tables(comparison, rows)
    for path in write_tables(comparison, rows, out):
        print(path)
