"""A pruned trial that really trained: it ends in order, and its record says so."""

from pathlib import Path

import optuna
from mlflow import MlflowClient
from rich.console import Console

from nsa_lab import tracking
from nsa_lab.config import config_hash, flatten, load_config, to_dict
from nsa_lab.runner.job import End
from nsa_lab.runner.recovery import identity
from nsa_lab.runner.view import View
from nsa_lab.search.samplers import PRUNERS
from nsa_lab.search.spec import Sweep
from nsa_lab.search.trial import Trials
from nsa_lab.training import run


def test_a_pruned_trial_is_finished_in_mlflow_and_tagged(tiny, tmp_path, monkeypatch):
    config = tiny({"tracking.enabled": True})
    sweep = Sweep(
        path=tmp_path / "space.py",
        base=tmp_path / "base.yaml",
        objectives={"val/accuracy": "maximize"},
        suggest=lambda trial: {"seed": trial.suggest_int("seed", 0, 9)},
        constraints=None,
        sampler="random",
        pruner="median",
        trials=1,
    )
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name="space", direction="maximize")
    monkeypatch.setitem(PRUNERS, "median", lambda: optuna.pruners.ThresholdPruner(lower=2.0))
    trials = Trials(
        study=study,
        storage=storage,
        sweep=sweep,
        base=flatten(to_dict(config)),
        seed=0,
        owner=identity(),
        directory=tmp_path / "trials",
        parent=None,
        view=View(Console(quiet=True), "trials", ["val/accuracy"], 1),
        trials=1,
    )

    job = trials.take(identity())
    assert config_hash(load_config(None, job.config)) == study.trials[0].user_attrs["config_hash"]
    result = run(
        load_config(None, job.config),
        directory=Path(job.directory),
        tags=job.tags,
        on_progress=lambda progress: trials.heard(job, progress),
        progress_bar=False,
    )
    assert trials.ended(job, End(1.0, result.metrics, result.tracking_id)) is None

    (trial,) = study.trials
    assert trial.state.name == "PRUNED" and trial.user_attrs["pruned"] == 4, "the first validation is after step 4"
    recorded = MlflowClient(tracking.tracking_uri(config)).get_run(trial.user_attrs["tracking_id"])
    assert (recorded.info.status, recorded.data.tags["state"]) == ("FINISHED", "pruned")
    assert "val/accuracy" in recorded.data.metrics
