"""`nsa-lab runs`: what a folder of runs holds, told from its files alone."""

import csv
import io
import json
import subprocess
import sys

import pytest

from nsa_lab import cli
from nsa_lab.analysis.runs import list_runs
from nsa_lab.config import to_yaml
from nsa_lab.files import FileLock
from nsa_lab.tracking.tags import design_tags
from nsa_testing import tiny_config

PRUNED = ("attention.reducer.kind=fastv", "attention.reducer.fastv.layer=1")


def write_run(folder, name, *overrides, status="FINISHED", begun=0, step=3, loss=0.5, over=True):
    """A run's folder as a training leaves it; `over`: with a summary."""
    home = folder / name
    home.mkdir(parents=True)
    config = tiny_config(*overrides)
    (home / "config.yaml").write_text(to_yaml(config))
    record = {"status": status, "started": 1_700_000_000_000 + begun * 1_000}
    (home / "tracking.json").write_text(json.dumps(record))
    (home / "tags.json").write_text(json.dumps(design_tags(config) | {"config_hash": name[-4:]}))
    line = {"step": step, "metrics": {"val/loss": loss, "budget/keys_per_query": 12.5, "gate/layer0/window": 0.5}}
    (home / "metrics.jsonl").write_text(json.dumps(line) + '\n{"step": 9, "met')
    summary = {"metrics": line["metrics"] | {"val/accuracy/needle": 1.0}, "stopped": False, "config_hash": name[-4:]}
    if over:
        (home / "summary.json").write_text(json.dumps(summary))
    return home


@pytest.fixture
def folder(tmp_path):
    write_run(tmp_path, "first-aaaa", "seed=1", begun=1, loss=0.75)
    write_run(tmp_path, "studies/s/trial-0000-bbbb", "attention.method=dense", *PRUNED, begun=2, loss=0.25)
    write_run(tmp_path, "cut-cccc", status="RUNNING", over=False, begun=3)
    write_run(tmp_path, "torn-dddd", begun=4).joinpath("summary.json").write_text("{}")
    artifacts = tmp_path / "mlartifacts" / "1"
    artifacts.mkdir(parents=True)
    (artifacts / "config.yaml").write_text("name: a copy, no run")
    return tmp_path


@pytest.fixture
def runs(capfd):
    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main(["runs", *map(str, arguments)])
        return end.value.code or 0, *capfd.readouterr()

    return call


def test_every_run_is_listed_the_last_begun_first(folder):
    rows = {row.name: row for row in list_runs(folder)}
    states = {name: row.state for name, row in rows.items()}
    assert states == {
        "torn-dddd": "damaged",
        "cut-cccc": "cut off",
        "studies/s/trial-0000-bbbb": "finished",
        "first-aaaa": "finished",
    }
    assert list(rows)[:3] == ["cut-cccc", "studies/s/trial-0000-bbbb", "first-aaaa"]
    assert rows["cut-cccc"].step == 3 and rows["cut-cccc"].metrics["val/loss"] == 0.5
    assert "summary.json is damaged" in rows["torn-dddd"].fault
    assert rows["first-aaaa"].design == "nsa: compression+selection+window"
    assert rows["studies/s/trial-0000-bbbb"].design == "dense with fastv"
    assert [row.name for row in list_runs(folder / "first-aaaa")] == ["first-aaaa"]


def test_a_run_is_running_while_its_lock_is_held(folder):
    lock = FileLock(folder / "cut-cccc" / "tracking.lock")
    assert lock.take()
    assert {row.name: row.state for row in list_runs(folder)}["cut-cccc"] == "running"
    lock.free()
    assert {row.name: row.state for row in list_runs(folder)}["cut-cccc"] == "cut off"


def test_the_table_shows_what_people_compare(folder, runs):
    code, out, err = runs(folder, "--sort", "val/loss")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].split() == ["run", "design", "state", "step", "val/loss", "keys", "per", "query", "hash", "when"]
    assert [line.split()[0] for line in lines[1:4]] == ["studies/s/trial-0000-bbbb", "cut-cccc", "first-aaaa"]
    assert "torn-dddd: " in err and "damaged" in err
    code, _, err = runs(folder, "--sort", "val/los")
    assert code == 2 and "did you mean 'val/loss'?" in err


def test_the_csv_has_every_validation_metric(folder, runs):
    code, out, _ = runs(folder, "--csv")
    assert code == 0
    rows = {row["run"]: row for row in csv.DictReader(io.StringIO(out))}
    assert float(rows["first-aaaa"]["val/accuracy/needle"]) == 1 and rows["cut-cccc"]["val/accuracy/needle"] == ""
    assert rows["first-aaaa"]["hash"] == "aaaa" and "gate/layer0/window" not in rows["first-aaaa"]


def test_two_runs_side_by_side(folder, runs):
    code, out, err = runs("diff", folder / "first-aaaa", folder / "studies/s/trial-0000-bbbb")
    assert code == 0, err
    cells = [line.split() for line in out.splitlines()]
    assert ["seed", "1", "0"] in cells and ["attention.method", "nsa", "dense"] in cells
    assert ["attention.partition.block_size", "4", "not", "read"] in cells
    assert ["val/loss", "0.75", "0.25"] in cells and "training.steps" not in out and "gate/" not in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["mlartifacts"], "mlartifacts holds no runs"),
        (["diff", "first-aaaa", "mlartifacts/2"], "mlartifacts/2 does not exist"),
        (["diff", "first-aaaa", "torn-dddd"], "summary.json is damaged"),
    ],
)
def test_what_is_no_run_is_said(folder, runs, monkeypatch, arguments, said):
    monkeypatch.chdir(folder)
    code, out, err = runs(*arguments)
    assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1
    assert said in err


def test_listing_imports_nothing_heavy(folder):
    code = (
        "import sys; from nsa_lab.analysis.runs import list_runs; list_runs(__import__('pathlib').Path(sys.argv[1]));"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code} print('torch' in sys.modules)", folder], capture_output=True, text=True
    )
    assert done.stdout.strip() == "False", done.stderr
