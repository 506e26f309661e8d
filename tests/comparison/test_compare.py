"""`nsa-lab compare`: trains what is missing and nothing else, through faults, without Optuna and MLflow."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nsa_lab.comparison import compare
from nsa_lab.comparison.plan import trainings
from nsa_lab.comparison.rows import ORIGIN, read_rows
from nsa_lab.comparison.spec import EXAMPLE_FILE, chosen, load_comparison
from nsa_lab.errors import ConfigError, NsaLabError

ROOT = Path(__file__).resolve().parents[2]
FILE = '''"""Question: which is best?"""
EXPERIMENTS = ("tiny.yaml",)
VARIANTS = {"uniform": {"attention.partition.kind": "uniform"}, "frame": {"attention.partition.kind": "frame"}}
REFERENCES = ("uniform",)
METRICS = {"val/accuracy": "maximize", "val/loss": "minimize"}
SEEDS = (3, 4, 5)
'''


@pytest.fixture
def study(clips, tmp_path):
    """A comparison of trainings of two steps; gives its file."""
    values = {
        "output": {"dir": str(tmp_path / "runs")},
        "data": {"cache_dir": str(clips)},
        "tracking": {"enabled": False},
        "attention": {"partition": {"block_size": 3}},
        "tasks": {"recall": {"enabled": True, "frames": 16, "scenes": 2, "train_clips": 4, "val_clips": 2}},
        "model": {"hidden_size": 32, "num_heads": 2, "num_kv_heads": 1, "num_layers": 2},
        "training": {"steps": 2, "batch_size": 2, "threads": 1, "accelerator": "cpu"},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "study.py").write_text(FILE)
    return tmp_path / "study.py"


def test_every_design_meets_every_seed_and_seeds_come_first(study):
    comparison = load_comparison(study)
    planned = trainings(comparison, *chosen(comparison, (), 2), ["training.steps=7"])
    assert [(t.variant, t.seed) for t in planned] == [("uniform", 3), ("frame", 3), ("uniform", 4), ("frame", 4)]
    assert all(t.config.seed == t.seed and t.config.training.steps == 7 for t in planned)
    assert len({t.directory for t in planned}) == 4
    other = trainings(comparison, ["uniform"], [3], ["training.steps=8"])
    assert other[0].directory != planned[0].directory


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("SEEDS", "SEEDZ", "study.py defines no SEEDS; a comparison needs EXPERIMENTS, VARIANTS, "),
        ('("uniform",)', '("best",)', "REFERENCES names best"),
        ("maximize", "up", "maximize or minimize"),
        ('REFERENCES = ("uniform",)', "REFERENCES = ()", "REFERENCES is (); write a tuple of one or more"),
        ('REFERENCES = ("uniform",)', 'REFERENCES = "uniform"', 'such as ("uniform",)'),
        ('("tiny.yaml",)', '"tiny.yaml"', "EXPERIMENTS is 'tiny.yaml'; write a tuple"),
        ('{"attention.partition.kind": "frame"}', "'kind=frame'", "VARIANTS maps frame to 'kind=frame'"),
        ("METRICS = {", "METRICS = () and {", "METRICS is (); write a dict"),
        ("val/accuracy", "val/acuracy", "METRICS names val/acuracy; a comparison can judge by val/accuracy, val/loss"),
        ("(3, 4, 5)", '("a",)', "SEEDS is ('a',); seeds are whole numbers"),
        ('REFERENCES = ("uniform",)', 'REFERENCES = ("uniform", "uniform")', "REFERENCES names uniform twice"),
        ("(3, 4, 5)", "(3, 4, 3)", "SEEDS names 3 twice; name it once"),
        ("tiny.yaml", "tinny.yaml", "tinny.yaml does not exist"),
        ("SEEDS = (", "SEEDS = 1 / 0, (", "study.py:6: ZeroDivisionError"),
    ],
)
def test_faults_of_the_file_are_named(study, old, new, said):
    study.write_text(FILE.replace(old, new))
    with pytest.raises(NsaLabError) as caught:
        load_comparison(study)
    assert said in str(caught.value)


def test_unknown_names_and_settings_are_refused_before_anything_is_trained(study, tmp_path):
    with pytest.raises(NsaLabError, match="no variant best; known: uniform, frame"):
        compare(study, variants=["best"])
    with pytest.raises(NsaLabError, match="has 3 seeds"):
        compare(study, seeds=4)
    with pytest.raises(ConfigError, match=r"training\.stepz"):
        compare(study, overrides=["training.stepz=1"])
    with pytest.raises(NsaLabError, match=r"study\.py does not exist|does not exist"):
        compare(tmp_path / "stdy.py")
    assert not (tmp_path / "runs").exists()


def test_a_sweep_is_no_comparison_and_the_answer_names_one():
    sweep, example = (ROOT / name for name in ("sweeps/partition.py", EXAMPLE_FILE))
    with pytest.raises(NsaLabError, match=f"partition.py defines no EXPERIMENTS, .*, as in {EXAMPLE_FILE}$"):
        load_comparison(sweep)
    assert load_comparison(example).name == "partition"


@pytest.mark.slow
@pytest.mark.usefixtures("workers")
def test_it_trains_what_is_missing_and_nothing_else(study, tmp_path, capfd):
    out = compare(study, seeds=1, workers=2)
    rows = read_rows(out / "runs.csv")
    assert sorted((key[1], key[2]) for key in rows) == [("frame", "3"), ("uniform", "3")]
    assert all(row[name] for row in rows.values() for name in ORIGIN)
    assert all(float(row["val/loss"]) > 0 for row in rows.values())
    trained = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("summary.json")}
    assert len(trained) == 2 and len(list(tmp_path.rglob("origin.json"))) == 2
    capfd.readouterr()

    compare(study, seeds=2, workers=2)
    said = capfd.readouterr().out
    assert "4 trainings, 2 done before" in said
    assert re.findall(r"^(\d+/\d+) ", said, re.MULTILINE) == ["1/2", "2/2"]
    assert {path: path.stat().st_mtime_ns for path in trained} == trained
    rows = read_rows(out / "runs.csv")
    assert len(rows) == 4
    assert "(n=2)" in (out / "table.md").read_text()

    # Rows that were lost are made again from the runs, without training.
    (out / "runs.csv").unlink()
    trained = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("summary.json")}
    compare(study, seeds=2)
    assert read_rows(out / "runs.csv") == rows
    assert {path: path.stat().st_mtime_ns for path in trained} == trained


@pytest.mark.usefixtures("workers")
def test_a_fault_of_one_training_spares_the_others(study, tmp_path, capfd):
    study.write_text(FILE.replace('"frame"}', '"frame", "training.learning_rate": 1.0e+30}'))
    with pytest.raises(NsaLabError, match=r"1 of 2 trainings failed; the first: tiny-frame-seed3: .* lower training"):
        compare(study, seeds=1)
    said = capfd.readouterr().out
    assert "tiny frame seed 3 failed  " in said
    (key,) = read_rows(tmp_path / "runs/comparisons/study/runs.csv")
    assert key[1] == "uniform"


@pytest.mark.slow
@pytest.mark.usefixtures("workers")
def test_after_the_time_is_up_nothing_is_started(study, capfd):
    out = compare(study, seeds=3, workers=1, minutes=0.0)
    assert len(read_rows(out / "runs.csv")) == 1
    assert "5 of 6 trainings were not started" in capfd.readouterr().out


@pytest.mark.slow  # tests/test_packaging.py hides the two from the imports and from one run
def test_it_needs_neither_optuna_nor_mlflow(study, tmp_path):
    """Stand-ins that fail hide the two libraries from the command and from its workers."""
    for library in ("optuna", "mlflow"):
        (tmp_path / f"{library}.py").write_text(f"raise ImportError('{library} is hidden')")
    path = os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "kernels")])
    command = [sys.executable, "-m", "nsa_lab.cli", "compare", study, "--seeds", "2", "--variants", "uniform"]
    done = subprocess.run(
        list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    assert "tiny uniform seed 4 complete  " in done.stdout
