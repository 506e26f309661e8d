"""`nsa-lab sweep`: set up a study, run its trials, report; and `nsa-lab sweep show`."""

import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
from rich.console import Console

from nsa_lab import tracking
from nsa_lab.errors import NsaLabError
from nsa_lab.files import locked
from nsa_lab.search.parent_run import open_parent_run
from nsa_lab.search.processes import identity
from nsa_lab.search.recovery import recover
from nsa_lab.search.report import print_report, write_report
from nsa_lab.search.rows import Outcome, read_outcome
from nsa_lab.search.samplers import build_pruner, build_sampler
from nsa_lab.search.spec import Sweep, base_values, design, load_sweep
from nsa_lab.search.storage import default_storage, load_study, open_storage
from nsa_lab.search.study import open_study
from nsa_lab.search.supervisor import Supervisor
from nsa_lab.search.trial import Job
from nsa_lab.search.view import open_view
from nsa_lab.search.worker import DEFAULT_RUNNER


@dataclass(frozen=True)
class SweepResult:
    """Where a sweep stands: its study, directory and outcome; `interrupted` after Ctrl-C."""

    study: str
    directory: Path
    outcome: Outcome
    interrupted: bool


def sweep(
    file: str | Path,
    *,
    trials: int | None = None,
    workers: int = 1,
    storage: str | None = None,
    study: str | None = None,
    overrides: Sequence[str] = (),
    runner: str = DEFAULT_RUNNER,
    console: Console | None = None,
) -> SweepResult:
    """Run `trials` more trials of a sweep file on `workers` processes, after those that a dead sweep left.

    `storage` is an Optuna URL (default: SQLite in the output folder), `study` a name (default: the file's
    stem), `overrides` are `key=value` strings on the base experiment, `runner` is "module:function" with the
    signature of `nsa_lab.training.run.run`. Results are in `{output.dir}/studies/{study}`.

    Raises NsaLabError on a faulty sweep file, an unusable storage, a changed search space or base experiment,
    and when all trials fail.
    """
    console = console or _console()
    plan = load_sweep(file)
    name = study or plan.path.stem
    count = plan.trials if trials is None else trials
    _check_counts(count, workers)
    build_sampler(plan.sampler, 0)
    build_pruner(plan.pruner)
    base = base_values(plan, overrides)
    config = design(base, {}, name)
    url = storage or default_storage(config.output.dir)
    directory = _directory(config.output.dir, name)
    directory.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    tracking.prepare_store(config)
    opened = open_study(plan, open_storage(url), name, base, overrides)
    if plan.pruner and len(plan.objectives) > 1:
        console.print(f"PRUNER {plan.pruner} is ignored: pruning needs one objective, there are {len(plan.objectives)}")
    with _sigterm_as_interrupt(), open_parent_run(config, opened, plan, directory, console) as parent:
        job = Job(
            sweep_file=str(plan.path.resolve()),
            base=base,
            storage=url,
            study=name,
            sampler=plan.sampler,
            pruner=plan.pruner if len(plan.objectives) == 1 else None,
            seed=config.seed,
            runner=runner,
            directory=str(directory),
            parent=parent.run_id,
        )
        interrupted = _run(opened, job, plan, count, workers, console)
        outcome = read_outcome(opened)
        parent.report(outcome, write_report(outcome, directory), interrupted)
    print_report(outcome, directory, console)
    if interrupted:
        command = f"nsa-lab sweep {file} --study {name} --trials N" + (f" --storage {storage}" if storage else "")
        console.print(f"interrupted; trials in flight come first in: {command}", highlight=False, soft_wrap=True)
    elif outcome.best is None:
        raise NsaLabError(f"study {name}: no trial completed; {_commonest_reason(outcome)}")
    return SweepResult(name, directory, outcome, interrupted)


def show(
    study: str, *, storage: str | None = None, output: str | Path = "runs", console: Console | None = None
) -> SweepResult:
    """Print a study's Pareto set again and rewrite its files. Raises NsaLabError with the known studies."""
    url = storage or default_storage(output)
    file = Path(url.removeprefix("sqlite:///"))
    if url.startswith("sqlite:///") and not file.exists():
        raise NsaLabError(f"{file} does not exist: no sweep was run there; give --storage or output.dir=...")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    outcome = read_outcome(load_study(open_storage(url), study))
    directory = _directory(output, study)
    write_report(outcome, directory)
    print_report(outcome, directory, console or _console())
    return SweepResult(study, directory, outcome, interrupted=False)


def _run(study: optuna.Study, job: Job, plan: Sweep, count: int, workers: int, console: Console) -> bool:
    """Run the trials; True when interrupted."""
    owner = identity()
    with locked(Path(job.directory) / "recovery.lock"):
        unfinished = recover(study, owner)
    if unfinished:
        console.print(f"{unfinished} unfinished trials of an earlier sweep are retried first", highlight=False)
    total = count + unfinished
    with open_view(console, plan.objectives, total) as view:
        try:
            Supervisor(study, job, owner, total, min(workers, total), view).run()
        except KeyboardInterrupt:
            return True
    return False


def _console() -> Console:
    """The terminal; wide enough for the tables where the output goes to a file."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def _directory(output: str | Path, study: str) -> Path:
    return Path(output).resolve() / "studies" / study


def _check_counts(trials: int, workers: int) -> None:
    for name, value in (("--trials", trials), ("--workers", workers)):
        if value < 1:
            raise NsaLabError(f"{name} {value} runs nothing; give 1 or more (`nsa-lab sweep show STUDY` only prints)")


def _commonest_reason(outcome: Outcome) -> str:
    reasons = Counter(f"{row.state}: {row.reason}" for row in outcome.rows if row.reason)
    if not reasons:
        return "all were retried or are still running"
    reason, times = reasons.most_common(1)[0]
    return f"{times} of {len(outcome.rows)} {reason}"


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """A job scheduler's SIGTERM ends a sweep like Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
