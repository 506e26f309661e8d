"""`mlflow server` killed beside trainings and sweeps: each ends complete, and its record arrives, once."""

import json
import random
import subprocess
import sys
import time
from collections import Counter

import pytest

from nsa_lab import tracking, train
from nsa_lab.config import load_config, to_yaml
from nsa_lab.errors import NsaLabError
from nsa_lab.files import read_json
from nsa_lab.tracking import tracker as tracker_file
from nsa_lab.tracking.store import KEPT_HERE
from nsa_servers import MlflowServer
from nsa_testing import TINY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SWEEP = """
BASE = "base.yaml"
OBJECTIVES = {"val/loss": "minimize", "budget/keys_per_query": "minimize"}
SAMPLER = "random"
REFERENCES = {}

def suggest(trial):
    return {"attention.branches.window.size": trial.suggest_int("window", 4, 40)}
"""


@pytest.fixture
def server(tmp_path):
    found = MlflowServer(tmp_path)
    found.start()
    yield found
    if found.process.poll() is None:
        found.kill()


@pytest.fixture
def config(server, clips, tmp_path):
    places = {"data.cache_dir": str(clips), "output.dir": str(tmp_path / "runs"), "training.threads": 1}
    return load_config(None, TINY | places | {"tracking.enabled": True, "tracking.uri": server.uri})


def check_arrived(uri, folder):
    """Every record at or below `folder` is one run of the server, with each of its values once; how many."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    runs = {
        run.info.run_id: run for run in client.search_runs([client.get_experiment_by_name("nsa-lab").experiment_id])
    }
    homes = {tracking.last_run_id(file.parent): file.parent for file in folder.rglob("tracking.json")}
    assert runs.keys() == homes.keys(), "a run for each record, and none else"
    for run_id, home in homes.items():
        assert runs[run_id].info.status == "FINISHED"
        lines = [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]
        wanted = Counter((name, line["step"]) for line in lines for name in line["metrics"] if KEPT_HERE not in name)
        names = {name for name, _ in wanted}
        found = Counter((name, m.step) for name in names for m in client.get_metric_history(run_id, name))
        assert found == wanted
        params, tags = (read_json(home / file, "") for file in ("params.json", "tags.json"))  # a parent has no params
        assert runs[run_id].data.params == params and tags.items() <= runs[run_id].data.tags.items()
        top = {path for path, folder in json.loads((home / "tracking.json").read_text())["artifacts"] if not folder}
        assert {file.path for file in client.list_artifacts(run_id)} >= {path.rpartition("/")[2] for path in top}
    return len(homes)


@pytest.mark.parametrize("back", [True, False], ids=["comes back", "stays away"])
def test_a_training_ends_complete_though_its_server_is_killed(server, config, tmp_path, monkeypatch, back):
    monkeypatch.setattr("nsa_lab.tracking.sender.INTERVAL_S", 0.1)
    monkeypatch.setattr(tracker_file, "FINISH_PATIENCE_S", 60.0 if back else 1.0)
    home, whole = tmp_path / "runs" / "one", tmp_path / "whole"

    def harm(progress):
        if progress.step == 3 and not progress.validated:
            time.sleep(1)  # something has arrived
            server.kill()
        if progress.step == 7 and back:
            server.start()
        return False

    if back:
        train(config, directory=home, on_progress=harm, progress_bar=False)
    else:
        with pytest.raises(NsaLabError, match=rf"everything is kept in {home}: send it later with `nsa-lab push"):
            train(config, directory=home, on_progress=harm, progress_bar=False)
        server.start()
        assert tracking.push(home) == [home]
    assert tracking.push(home) == [], "nothing is left"
    assert check_arrived(server.uri, home) == 1
    assert json.loads((home / "summary.json").read_text())["stopped"] is False
    again = train(config, directory=home, progress_bar=False)
    assert again.recorded and check_arrived(server.uri, home) == 1, "asked again, it is neither trained nor sent again"
    plain = load_config(None, {**TINY, "data.cache_dir": config.data.cache_dir, "training.threads": 1})
    untold = train(plain, directory=whole, progress_bar=False)
    assert {k: v for k, v in untold.metrics.items() if k.startswith("val/")} == {
        k: v for k, v in again.metrics.items() if k.startswith("val/")
    }


def test_a_sweep_ends_complete_though_its_server_is_killed_again_and_again(server, config, tmp_path):
    (tmp_path / "base.yaml").write_text(to_yaml(config))
    (tmp_path / "space.py").write_text(SWEEP)
    command = [sys.executable, "-m", "nsa_lab.cli", "sweep", "space.py", "--trials", "4", "--workers", "2"]
    process = subprocess.Popen(
        [*command, "training.steps=30"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    dice, kills, study = random.Random(0), 0, tmp_path / "runs/studies/space"
    while process.poll() is None:
        time.sleep(dice.uniform(0.5, 3))
        if kills < 3 and list(study.glob("trial-*/metrics.jsonl")):
            server.kill()
            kills += 1
            time.sleep(dice.uniform(0, 4))
            server.start()
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert kills >= 2, "the sweep hardly noticed"
    summaries = [json.loads(file.read_text()) for file in study.glob("trial-*/summary.json")]
    assert [summary["stopped"] for summary in summaries] == [False] * 4 and "4 complete" in output
    tracking.push(study)
    assert check_arrived(server.uri, study) == 5
