"""A pruned trial that really trained: it ends in order, and its record says so."""

import optuna
from mlflow import MlflowClient

from nsa_lab import tracking
from nsa_lab.config import flatten, to_dict
from nsa_lab.search.spec import Sweep
from nsa_lab.search.trial import Job, run_trial
from nsa_lab.training import run


def test_a_pruned_trial_is_finished_in_mlflow_and_tagged(tiny, tmp_path):
    config = tiny({"tracking.enabled": True})
    job = Job(
        sweep_file="space.py",
        base=flatten(to_dict(config)),
        storage="",
        study="space",
        sampler="random",
        pruner="median",
        seed=0,
        runner="",
        directory=str(tmp_path / "trials"),
        parent=None,
    )
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
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.ThresholdPruner(lower=2.0))

    run_trial(study, study.ask(), job, sweep, run, send=lambda report: None)

    (trial,) = study.trials
    assert trial.state.name == "PRUNED" and trial.user_attrs["pruned"] == 4, "the first validation is after step 4"
    recorded = MlflowClient(tracking.tracking_uri(config)).get_run(trial.user_attrs["tracking_id"])
    assert (recorded.info.status, recorded.data.tags["state"]) == ("FINISHED", "pruned")
    assert "val/accuracy" in recorded.data.metrics
