"""`nsa-lab compare`: train every design of a comparison with every seed, and say what the differences are worth."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from nsa_lab.comparison.ablation import read_comparison
from nsa_lab.comparison.ledger import Ledger, job_of, name_of
from nsa_lab.comparison.plan import makeup, needed, trainings
from nsa_lab.comparison.report import print_tables, write_tables
from nsa_lab.comparison.rows import Key, Row, check_settings, key_of, read_rows
from nsa_lab.comparison.spec import Comparison, Training, chosen
from nsa_lab.comparison.stored import command, store, stored_command
from nsa_lab.errors import NsaLabError
from nsa_lab.files import FileLock, room_on_disk, writing
from nsa_lab.redact import hide
from nsa_lab.runner.job import TRAIN, JobList
from nsa_lab.runner.parent_run import parent_run, without_passwords
from nsa_lab.runner.pool import Pool, sigterm_as_interrupt
from nsa_lab.runner.view import View, make_console

ROWS = "runs.csv"


def compare(
    what: Path | Comparison,
    *,
    overrides: Sequence[str] = (),
    variants: Sequence[str] = (),
    seeds: int | None = None,
    workers: int = 1,
    minutes: float | None = None,
    out: Path | None = None,
    runner: str = TRAIN,
) -> Path:
    """Train what `out`/runs.csv does not hold yet of a comparison or its file, write tables beside it; returns `out`.

    `out` is by default {output.dir}/comparisons/NAME. After `minutes` no training is started any more;
    one whose worker dies is tried again. `runner` is "module:function" with the signature of nsa_lab.train.
    Raises NsaLabError where a training failed, after the tables of the others have been written, where another
    comparison writes `out`, and where `out` holds the same designs under other settings.
    """
    comparison = what if isinstance(what, Comparison) else read_comparison(what)
    typed = hide(comparison.command or command(comparison, variants, seeds, overrides))
    comparison = replace(comparison, command=typed)
    wanted = trainings(comparison, *chosen(comparison, variants, seeds), overrides)
    home = wanted[-1].directory.parent
    out = out or home
    with _alone(out), sigterm_as_interrupt(), room_on_disk(out, lambda: "what was trained is kept"):
        rows = read_rows(out / ROWS)
        check_settings(out / ROWS, rows.values(), wanted)
        before = stored_command(out)
        store(comparison, out)
        if before not in ("", typed) and rows:
            print(f"tables in {out} were of `{before}`; now of `{typed}` (--out FOLDER keeps both)", flush=True)
        todo = needed([training for training in wanted if key_of(training) not in rows])
        logs = f"; what they print: {home / 'logs'}" if todo else ""
        done = sum(key_of(training) in rows for training in wanted)
        print(f"{len(wanted)} trainings, {done} done before, {workers} workers; {makeup(wanted)}{logs}", flush=True)
        if not todo:
            _show(comparison, wanted, rows, out)
            return out
        kinds = {name_of(training): training.kind for training in todo}
        view = View(make_console(), "trainings", list(comparison.metrics), len(todo), kinds)
        ledger = Ledger(out / ROWS, rows, {str(training.directory): training for training in todo}, view)
        name = f"comparison-{comparison.name}"
        tags = {"kind": "comparison", "comparison": comparison.name, "mlflow.runName": name}
        with parent_run(wanted[-1].config, out, tags, children=home, again=True) as parent:
            parent.artifact(without_passwords(comparison.path, out))
            jobs = JobList([job_of(t, comparison.name, parent.run_id, runner) for t in todo], ledger.enter)
            Pool(jobs, runner, workers, home / "logs", view, minutes).work()
            for path in _show(comparison, wanted, rows, out):
                parent.artifact(path)
    if ledger.faults:
        raise NsaLabError(f"{len(ledger.faults)} of {len(wanted)} trainings failed; the first: {ledger.faults[0]}")
    left = len(todo) - view.counts.total()
    if left:
        print(f"{left} of {len(wanted)} trainings were not started in {minutes:g} minutes; the same command does them")
    return out


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep other comparisons out of `out`."""
    lock = FileLock(out / "compare.lock")
    with writing(out, "choose another folder with --out"):
        out.mkdir(parents=True, exist_ok=True)
        taken = lock.take()
    if not taken:
        raise NsaLabError(f"another comparison writes {out}; wait for it, or choose another folder with --out")
    try:
        yield
    finally:
        lock.free()


def _show(comparison: Comparison, wanted: Sequence[Training], rows: Mapping[Key, Row], out: Path) -> list[Path]:
    """Write the tables of the wanted trainings that ended, and print them (whoever reads may be gone); the files."""
    mine = [rows[key] for key in map(key_of, wanted) if key in rows]
    if not mine:
        return []
    files = write_tables(comparison, mine, out)
    print_tables(comparison, mine)
    for path in files:
        print(path)
    return [*files, out / ROWS]
