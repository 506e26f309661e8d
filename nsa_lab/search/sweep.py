"""`nsa-lab sweep`: set up a study, run its trials, report; and `nsa-lab sweep show`."""

import shlex
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from rich.console import Console

from nsa_lab.errors import NsaLabError
from nsa_lab.files import locked, room_on_disk, unfit_for_a_folder
from nsa_lab.redact import hide
from nsa_lab.runner.job import TRAIN
from nsa_lab.runner.pool import Pool, sigterm_as_interrupt
from nsa_lab.runner.recovery import identity
from nsa_lab.runner.view import View, make_console
from nsa_lab.search.lock import study_lock
from nsa_lab.search.parent_run import record_outcome, study_run
from nsa_lab.search.recovery import recover
from nsa_lab.search.report import drop_checkpoints, print_report, write_report
from nsa_lab.search.rows import REFERENCE, Outcome, read_outcome
from nsa_lab.search.samplers import build_pruner, build_sampler
from nsa_lab.search.spec import base_values, design, load_sweep
from nsa_lab.search.start import Start
from nsa_lab.search.storage import default_storage, load_study, open_storage, storage_faults
from nsa_lab.search.study import open_study
from nsa_lab.search.trial import Trials


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
    total: int | None = None,
    workers: int = 1,
    storage: str | None = None,
    study: str | None = None,
    overrides: Sequence[str] = (),
    seeds: int = 1,
    keep_checkpoints: str = "front",
    runner: str = TRAIN,
    console: Console | None = None,
) -> SweepResult:
    """Run `trials` more trials of a sweep file on `workers` processes, after those that a dead sweep left.

    With 0 `trials` those alone. With `total` instead, trials until the study has that many, counted over all sweeps on
    it, on whatever machine; it ends when all of these have ended, and trains what one that died left. `storage` is an
    Optuna URL (default: SQLite in the output folder), `study` a name (default: the file's stem), `overrides` are
    `key=value` strings on the base experiment, `runner` is "module:function" with the signature of `nsa_lab.train`.
    With `seeds` a design is trained that often, and its objectives are means. Of complete trials that are not on the
    Pareto front the checkpoints are removed, unless `keep_checkpoints` is "all". Results are in
    `{output.dir}/studies/{study}`.

    Raises NsaLabError on a faulty sweep file, both `trials` and `total`, an unusable storage, a changed search space or
    base experiment, and when all trials fail.
    """
    console = console or make_console()
    plan = load_sweep(file)
    name = plan.path.stem if study is None else study
    if unfit := unfit_for_a_folder(name):
        raise NsaLabError(f"--study {name!r} cannot name a study's folder: {unfit}")
    count = plan.trials if trials is None else trials
    if trials is not None and total is not None:
        raise NsaLabError(f"--trials {trials} and --total {total} are two answers to how many trials; give one")
    _check_counts(
        ("--trials", count, 0),
        ("--total", 1 if total is None else total, 1),
        ("--workers", workers, 1),
        ("--seeds", seeds, 1),
    )
    build_sampler(plan.sampler, 0)
    build_pruner(plan.pruner)
    base = base_values(plan, overrides)
    config = design(base, {}, name)
    home = _home(config.output.dir, name)
    start = Start.of(plan, base, name, home, seeds)
    if start:
        base["model.path"] = start.path
    url = storage or default_storage(config.output.dir)
    directory = home.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    opened_storage = open_storage(url)
    alone = study_lock(url, opened_storage, name)
    with storage_faults(url):
        opened = open_study(plan, opened_storage, name, base, overrides, seeds)
    if plan.pruner and (len(plan.objectives) > 1 or seeds > 1):
        found = f"objectives: {len(plan.objectives)}, seeds: {seeds}"
        console.print(f"PRUNER {plan.pruner} is ignored: pruning needs one objective and one seed ({found})")
    with (
        storage_faults(url),
        sigterm_as_interrupt(),
        room_on_disk(directory, lambda: "what was trained is kept"),
        study_run(config, opened, plan, directory, console, alone) as parent,
    ):
        with alone():
            unfinished = recover(opened, opened_storage, identity())
        if unfinished:
            console.print(f"{unfinished} unfinished trials of an earlier sweep are retried first", highlight=False)
        missing = [r for r in plan.references if f"{REFERENCE}{r}" not in opened.user_attrs] if count else []
        view = View(console, "trials", list(plan.objectives), count + unfinished + len(missing))
        source = Trials(
            study=opened,
            storage=opened_storage,
            sweep=plan,
            base=base,
            seed=config.seed,
            directory=directory,
            parent=opened.user_attrs.get("tracking_id"),
            view=view,
            trials=count + unfinished,
            references=deque(missing),
            start=start,
            seeds=seeds,
            run=runner,
            total=total,
            alone=alone,
        )
        interrupted = False
        try:
            if start and source.left:
                with locked(directory / "start.lock"):  # another sweep on this study may train it
                    start.train(opened, runner, workers, directory / "logs", console, list(plan.objectives))
            Pool(source, runner, workers, directory / "logs", view).work()
        except KeyboardInterrupt:
            interrupted = True
        outcome = read_outcome(opened)
        files = write_report(outcome, directory)
        if keep_checkpoints == "front":
            drop_checkpoints(outcome)
        if parent is not None:
            record_outcome(parent, outcome, files)
            parent.finish("KILLED" if interrupted else "FINISHED")
    print_report(outcome, directory, console)
    if interrupted:
        left = ["--trials", str(min(count, source.trials))] if total is None else ["--total", str(total)]
        again = ["nsa-lab", "sweep", str(file), *overrides, "--study", name, *left]
        again += ["--workers", str(workers)]
        if storage and hide(storage) == storage:  # else it came, or has to come, from the environment
            again += ["--storage", storage]
        again += ["--seeds", str(seeds)] * (seeds > 1) + ["--keep-checkpoints", "all"] * (keep_checkpoints == "all")
        secret = " (and the storage in NSA_LAB_STORAGE)" if storage and "--storage" not in again else ""
        words = f"interrupted; trials in flight come first in{secret}: {hide(shlex.join(again))}"
        console.print(words, highlight=False, markup=False, soft_wrap=True)
    elif not outcome.count("complete"):
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
    with storage_faults(url):
        outcome = read_outcome(load_study(open_storage(url), study))
    directory = _home(output, study).resolve()
    write_report(outcome, directory)
    print_report(outcome, directory, console or make_console())
    return SweepResult(study, directory, outcome, interrupted=False)


def _home(output: str | Path, study: str) -> Path:
    return Path(output) / "studies" / study


def _check_counts(*counts: tuple[str, int, int]) -> None:
    for name, value, least in counts:
        if value < least:
            raise NsaLabError(f"{name} {value} runs nothing; give {least} or more")


def _commonest_reason(outcome: Outcome) -> str:
    reasons = Counter(f"{row.state}: {row.reason}" for row in outcome.rows if row.reason)
    if not reasons:
        return "all were retried or are still running"
    reason, times = reasons.most_common(1)[0]
    return f"{times} of {len(outcome.rows)} {reason}"
