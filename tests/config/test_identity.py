"""What makes a run another run: the settings that are read, where they differ from their defaults."""

import json
import subprocess
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import yaml

from nsa_lab.config import (
    ExperimentConfig,
    config_hash,
    identity,
    is_incidental,
    load_config,
    load_saved_config,
    to_yaml,
    unflatten,
)
from nsa_lab.config.identity import ADDED_AS, INCIDENTAL, defaults
from nsa_lab.config.rules import notices
from nsa_lab.config.tree import read_settings
from nsa_lab.errors import NsaLabError
from nsa_lab.training.directory import RunDirectory

ROOT = Path(__file__).resolve().parents[2]
IN_GIT = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.splitlines()
OTHERS = [*(ROOT / "experiments/ablations").glob("*.yaml"), *(ROOT / "experiments/evaluate").glob("*.yaml")]
EXPERIMENTS = sorted({*(ROOT / "experiments").rglob("*.yaml")} - {*OTHERS})
GOLDEN = ROOT / "tests/golden/hashes.json"
NEEDLE = "tasks.needle.enabled=true"


def config(*overrides):
    return load_config(None, [NEEDLE, *overrides])


def leaves(kind, prefix=""):
    """Every setting of the schema with its type."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        if is_dataclass(hints[field.name]):
            yield from leaves(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", hints[field.name]


def another(value, kind):
    """A value that differs from `value`, a setting of the type `kind`; None where there is no other."""
    kinds = get_args(kind) or (kind,)
    if kinds[0] is bool:
        return not value
    if kinds[0] is int:
        return (value or 0) + 1
    if kinds[0] is float:
        return (value or 0.0) + 0.125
    if get_origin(kind) is Literal:
        return next((choice for choice in kinds if choice != value), None)
    return f"{value}x"


def test_the_hash_is_over_what_is_read_and_not_incidental():
    first, read = config(), set(read_settings(config()))
    changed, alone = set(), set()
    for key, kind in leaves(ExperimentConfig):
        other = config()
        *parents, name = key.split(".")
        node = other
        for parent in parents:
            node = getattr(node, parent)
        value = {"0": {"method": "dense"}} if name == "layers" else another(getattr(node, name), kind)
        if value is None:
            alone.add(key)
            continue
        setattr(node, name, value)
        if config_hash(other) != config_hash(first):
            changed.add(key)
    every = {key for key, _ in leaves(ExperimentConfig)}
    assert changed == {key for key in (read | {"attention.layers"}) - alone if not is_incidental(key)}
    assert {"attention.partition.tile.cycle", "attention.gate.value", "tasks.order.events"} <= every - changed
    assert all(any(f"{key}.".startswith(f"{setting}.") for key in every) for setting in INCIDENTAL)
    assert not is_incidental("names") and not is_incidental("training.log_every_day")


def test_defaults_are_no_part_of_it():
    assert identity(config("data.positions=transformers")) == {"tasks.needle.enabled": True}
    assert identity(config()) == {"tasks.needle.enabled": True, "data.positions": "qwen"}
    assert identity(config("training.steps=300", "attention.partition.block_size=64")) == identity(config())
    assert identity(config("training.steps=7"))["training.steps"] == 7


def without(config, key):
    """The YAML that a run of `config` saved before there was the setting `key`."""
    return yaml.safe_dump(unflatten({k: v for k, v in read_settings(config).items() if k != key}))


def test_a_default_that_becomes_another_changes_the_hash_and_not_what_was_saved(monkeypatch, tmp_path):
    """As if data.fps had come later, as 1.0, and 2.0 were its default since."""
    old = config("data.fps=1.0", "data.positions=transformers")
    file = tmp_path / "config.yaml"
    file.write_text(without(old, "data.fps"))
    monkeypatch.setitem(ADDED_AS, "data.fps", 1.0)
    assert identity(old) == {"tasks.needle.enabled": True}
    assert identity(config("data.positions=transformers")) == {"tasks.needle.enabled": True, "data.fps": 2.0}
    assert load_saved_config(file).data.fps == 1.0 and config_hash(load_saved_config(file)) == config_hash(old)
    assert load_saved_config(file, ["data.fps=4"]).data.fps == 4.0 and load_config(file).data.fps == 2.0
    with pytest.raises(NsaLabError, match=r"another config .*; data\.fps=1\.0 there, 2\.0 here"):
        RunDirectory.prepare(config(), tmp_path)
    RunDirectory.prepare(old, tmp_path)


def test_what_was_added_as_something_is_a_setting():
    assert ADDED_AS.keys() <= defaults().keys()


def test_a_setting_counts_where_any_layer_reads_it():
    plain = config("attention.partition.max_size=96")
    assert config_hash(plain) == config_hash(config())
    scene = "attention.layers={1: {partition: {kind: scene}}}"
    assert config_hash(config(scene, "attention.partition.max_size=96")) != config_hash(config(scene))
    unread = "attention.layers={1: {partition: {kind: frame, max_size: 96}}}"
    assert config_hash(config(unread)) == config_hash(config("attention.layers={1: {partition: {kind: frame}}}"))
    assert yaml.safe_load(to_yaml(config(scene, "attention.partition.max_size=96")))["attention"]["partition"] == {
        "block_size": 64, "kind": "uniform", "max_size": 96, "min_size": 1,
    }  # fmt: skip


def test_ranges_that_overlap_are_told_apart():
    wide = "0-1: {branches: {window: {size: 8}}}"
    back = config(f"attention.layers={{{wide}, 1: {{branches: {{window: {{size: 256}}}}}}}}")
    assert config_hash(back) != config_hash(config(f"attention.layers={{{wide}}}"))


def test_what_is_set_but_not_read_is_said():
    few = "attention.branches.selection.block_count=2"
    (said,) = notices(config(few, "attention.partition.max_size=96"))
    assert said == "attention.partition.max_size=96 is read by nothing that is chosen"
    assert notices(config(few, "attention.partition={kind: scene, max_size: 96}")) == []
    assert notices(config(few, "attention.method=dense", "tasks.order.events=3")) == []
    (said,) = notices(config(few, "attention.reducer.fastv.layer=99"))
    assert said == "attention.reducer.fastv.layer=99 is read by nothing that is chosen"
    assert notices(config(few, "attention.reducer={kind: fastv, fastv: {layer: 1}}")) == []


def test_a_shape_beside_weights_that_have_their_own_is_said_not_to_be_read(tmp_path):
    start, shape = f"model.path={tmp_path}", ("model.size=mini", "model.num_layers=3", "model.rope_theta=5.0")
    few = "attention.branches.selection.block_count=2"
    said = notices(config(few, start, *shape))
    assert [line.partition(" is not read")[0] for line in said] == list(shape)
    assert said[0].endswith(f"{start} holds weights, whose shape is stored beside them")
    assert notices(config(few, start)) == notices(config(few, *shape)) == []
    (tmp_path / "config.yaml").write_text(to_yaml(config(*shape)))
    assert notices(config(few, start)) == [], "of a run the shape is taken over"


def test_the_hash_does_not_depend_on_how_a_config_was_written(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump({"training": {"steps": 7}, "tasks": {"needle": {"enabled": True}}}))
    assert config_hash(load_config(file)) == config_hash(config("training.steps=7.0"))
    by_number, by_text = (config(f"attention.layers={{{key}: {{method: dense}}}}") for key in ("0", "'0'"))
    assert config_hash(by_number) == config_hash(by_text)
    assert len(config_hash(by_text)) == 12


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_shipped_experiments_keep_their_hash(file, request):
    """To record a new experiment, or a change that is meant: pytest tests/config --update-golden."""
    name, found = str(file.relative_to(ROOT)), config_hash(load_config(file))
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if request.config.getoption("--update-golden"):
        GOLDEN.write_text(json.dumps(golden | {name: found}, indent=1, sort_keys=True) + "\n")
    elif name not in golden and name not in IN_GIT:
        pytest.skip(f"{name} is somebody's own, as `promote` writes them")
    else:
        assert golden[name] == found


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_the_yaml_of_an_experiment_is_the_same_run(file, tmp_path):
    first = load_config(file)
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(first))
    assert read_settings(load_config(again)) == read_settings(first)
    assert config_hash(load_config(again)) == config_hash(first)
