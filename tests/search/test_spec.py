"""Sweep files, samplers and storages: what is read, and how faults are named."""

from pathlib import Path

import optuna
import pytest

from nsa_lab.config import load_config
from nsa_lab.errors import ConfigError, NsaLabError
from nsa_lab.search import show, sweep
from nsa_lab.search.samplers import PRUNERS, SAMPLERS, build_pruner, build_sampler
from nsa_lab.search.spec import base_values, constraint_values, design, load_sweep
from nsa_lab.search.storage import open_storage

SHIPPED = sorted(Path(__file__).parents[2].glob("sweeps/*.py"))
GOOD = """
BASE = "base.yaml"
OBJECTIVES = {"val/accuracy": "maximize"}
def suggest(trial):
    return {"attention.branches.window.size": trial.suggest_int("window", 1, 64)}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text("tasks: {needle: {enabled: true}}\ntracking: {enabled: false}\n")
    Path("budget.py").write_text(GOOD)
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("suggest(trial)", "propose(trial)"), r"budget\.py defines no suggest"),
        (("maximize", "up"), "direction 'up'; use maximize or minimize"),
        (('{"val/accuracy": "maximize"}', '"val/accuracy"'), "OBJECTIVES is no dict"),
        (("base.yaml", "bass.yaml"), "bass.yaml does not exist here"),
        (("def suggest", "def suggest)"), r"budget\.py:4: SyntaxError"),
        (("BASE =", "BASE = 1 / 0 or"), r"budget\.py:2: ZeroDivisionError"),
        (("trial.suggest_int", "trial.sugest_int"), r"budget\.py:5: suggest failed: AttributeError"),
        (("return {", "return 1 or {"), "suggest returned 1; return a dict"),
        (("def suggest", "TRIALS = 1.5\ndef suggest"), "TRIALS is 1.5; write a whole number"),
        (("def suggest", "SAMPLER = ['tpe']\ndef suggest"), r"SAMPLER is \['tpe'\]; write text"),
        (("def suggest", "PRUNER = 7\ndef suggest"), "PRUNER is 7; write text or None"),
        (('"base.yaml"', "5"), "BASE is 5; write text"),
        (('"val/accuracy":', "3:"), "objective 3 is no name"),
        (("def suggest", "REFERENCES = {'dense': 1}\ndef suggest"), "REFERENCES is no dict like"),
        (
            ('{"attention', '{"output.dir": "x", "attention'),
            "suggest sets output.dir, which all trials of a study share",
        ),
        (('{"attention', '{"tracking.uri": "x", "attention'), "suggest sets tracking.uri, which all trials"),
        (('{"attention', '{"training.steps": object(), "attention'), "gives 'training.steps' <object .*; use plain"),
        (('{"attention', '{7: 1, "attention'), "has the key 7; use dotted"),
        (("window.size", "windw.size"), r"'attention\.branches\.windw\.size', which no config has; did you mean"),
    ],
)
def test_faulty_sweep_files_are_named(folder, change, message):
    Path("budget.py").write_text(GOOD.replace(*change))
    with pytest.raises(NsaLabError, match=message) as caught:
        sweep("budget.py", trials=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"file": "budgt.py"}, r"budgt\.py does not exist; did you mean budget\.py"),
        ({"trials": -1}, "--trials -1 runs nothing"),
        ({"total": 3}, "--trials 1 and --total 3 are two answers to how many trials; give one"),
        ({"trials": None, "total": 0}, "--total 0 runs nothing"),
        ({"workers": 0}, "--workers 0 runs nothing"),
        ({"study": "../../x"}, "--study '../../x' cannot name a study's folder: it leads to another folder"),
        ({"study": ""}, "--study '' cannot name a study's folder: it is empty"),
        ({"overrides": ["attention.branches.window.size=4"]}, "is searched by budget.py"),
        ({"storage": "nonsense"}, "storage 'nonsense' is no URL"),
        ({"storage": "postgresql://nobody@127.0.0.1:9/x"}, "database driver|cannot be opened"),
        ({"storage": "sqlite:////proc/nowhere/x.db"}, "cannot be opened"),
        ({"runner": "nsa_lab.nowhere:run"}, "runner nsa_lab.nowhere:run cannot be imported"),
    ],
)
def test_faulty_options_are_named(folder, options, message):
    options = {"file": "budget.py", "trials": 1, **options}
    with pytest.raises(NsaLabError, match=message) as caught:
        sweep(options.pop("file"), **options)
    assert "\n" not in str(caught.value)


def test_faults_of_the_base_experiment_are_all_reported(folder):
    with pytest.raises(ConfigError) as caught:
        sweep("budget.py", trials=1, overrides=["training.steps=-1", "training.batch_size=0"])
    assert {p.path for p in caught.value.problems} == {"training.steps", "training.batch_size"}


def test_damaged_storage_is_named(folder):
    Path("damaged.db").write_bytes(b"no database at all " * 100)
    with pytest.raises(NsaLabError, match=r"damaged\.db cannot be opened \(file is not a database\)"):
        sweep("budget.py", trials=1, storage=f"sqlite:///{folder}/damaged.db")


def test_show_names_the_known_studies(folder):
    with pytest.raises(NsaLabError, match="no sweep was run there"):
        show("budget")
    optuna.create_study(storage=open_storage(f"sqlite:///{folder}/runs/studies.db"), study_name="other")
    with pytest.raises(NsaLabError, match="study 'budget' does not exist; known: other"):
        show("budget")


@pytest.mark.parametrize(("line", "near"), [("SAMPLER = 'tpee'", "tpe"), ("PRUNER = 'medain'", "median")])
def test_unknown_samplers_and_pruners_name_their_neighbours(folder, line, near):
    Path("budget.py").write_text(f"{GOOD}\n{line}\n")
    with pytest.raises(NsaLabError, match=f"is unknown; did you mean '{near}'"):
        sweep("budget.py", trials=1)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_draws_and_repeats_itself(name):
    def draw(seed):
        study = optuna.create_study(sampler=build_sampler(name, seed))
        for _ in range(3):
            trial = study.ask()
            study.tell(trial, trial.suggest_int("x", 0, 10**6, step=10**5) + trial.suggest_int("y", 0, 9))
        return [trial.params for trial in study.trials]

    assert draw(1) == draw(1)
    assert name == "qmc" or draw(1) != draw(2)


@pytest.mark.parametrize("name", [None, *PRUNERS])
def test_every_pruner_builds(name):
    assert isinstance(build_pruner(name), optuna.pruners.BasePruner)


def test_a_design_is_the_base_with_the_suggested_values(folder):
    Path("base.yaml").write_text(
        'tasks: {needle: {enabled: true}}\nattention: {layers: {"0-1": {gate: {kind: linear}}}}\n'
    )
    base = base_values(load_sweep("budget.py"), ["training.steps=5"])
    values = {"attention.layers.0-1.partition.block_size": 8, "training.learning_rate": 1e-05, "model.path": None}
    config = design(base, values, "trial")
    assert config.attention.layers == {"0-1": {"gate": {"kind": "linear"}, "partition": {"block_size": 8}}}
    assert (config.training.steps, config.training.learning_rate, config.name) == (5, 1e-05, "trial")
    with pytest.raises(ConfigError, match="block_size"):
        design(base, {"attention.partition.block_size": 0}, "trial")


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_sweeps_suggest_designs_that_load(file, monkeypatch):
    monkeypatch.chdir(file.parents[1])
    shipped = load_sweep(file)
    base, study = base_values(shipped, []), optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    feasible = 0
    for _ in range(60):
        try:
            config = design(base, shipped.suggest(study.ask()), "trial")
        except ConfigError:
            continue
        feasible += all(value <= 0 for value in constraint_values(shipped, config).values())
    assert feasible > 15, "most designs are infeasible: narrow the space"
    assert load_config(shipped.base) is not None
    assert all(word in file.read_text() for word in ("Question:", "Command:", "Cost:", "Expected:"))
