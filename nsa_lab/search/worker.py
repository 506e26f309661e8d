"""A worker process: takes trials from its sweep one by one until told to end, or until the sweep is gone."""

import importlib
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from nsa_lab.errors import NsaLabError
from nsa_lab.runner.process import end_with_parent, redirect_output, share_machine

DEFAULT_RUNNER = "nsa_lab.training.run:run"


def main(job: Any, index: int, workers: int, connection: Connection) -> None:
    """The body of worker `index`. Output goes to `logs/worker-N.log` of the study's directory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    redirect_output(Path(job.directory) / "logs" / f"worker-{index}.log")
    share_machine(index, workers)

    # After the environment above is set: these import torch.
    from nsa_lab.search.trial import Fatal, Report

    try:
        serve = _prepare(job, connection.send)
    except NsaLabError as error:
        connection.send(Report("fatal", message=str(error)))
        return
    connection.send(Report("ready"))
    while (trial_id := connection.recv()) is not None:
        try:
            connection.send(serve(trial_id))
        except Fatal as fault:
            connection.send(Report("fatal", message=str(fault)))


def load_runner(name: str) -> Callable[..., Any]:
    """The function that trains a config, from "package.module:function"."""
    module, _, function = name.partition(":")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise NsaLabError(f"runner {name} cannot be imported: {error}") from error
    return found


def _prepare(job: Any, send: Callable[[Any], None]) -> Callable[[int], Any]:
    import optuna

    from nsa_lab.search.samplers import build_pruner, build_sampler
    from nsa_lab.search.spec import load_sweep
    from nsa_lab.search.storage import load_study, open_storage
    from nsa_lab.search.trial import Report, run_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    runner, sweep = load_runner(job.runner), load_sweep(job.sweep_file)
    pruner = build_pruner(job.pruner)
    storage = open_storage(job.storage)

    def serve(trial_id: int) -> Any:
        # One sampler per trial: its draws follow from seed and trial number alone, whichever process it runs in,
        # and a worker that replaces a killed one does not repeat that one's draws. A fresh study, because a
        # study keeps what it read at its own `ask`, and this trial was asked for elsewhere.
        number = storage.get_trial(trial_id).number
        sampler = build_sampler(job.sampler, (job.seed * 1_000_003 + number) % 2**32)
        study = load_study(storage, job.study, sampler=sampler, pruner=pruner)
        study.get_trials(deepcopy=False)
        trial = optuna.Trial(study, trial_id)
        run_trial(study, trial, job, sweep, runner, send)
        return Report("done", trial.number, exhausted=getattr(sampler, "exhausted", False))

    return serve
