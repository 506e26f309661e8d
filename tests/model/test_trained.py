"""model.path names a run: its weights, shape, design, tokenizer and positions are where the next one begins."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from nsa_lab import load_model
from nsa_lab.config import config_hash, load_config, load_saved_config, to_yaml
from nsa_lab.errors import ConfigError, NsaLabError
from nsa_lab.model import build_model
from nsa_lab.model.checkpoint import tokens_per_second
from nsa_lab.model.trained import PARTS, last_weights
from nsa_lab.training.restore import restore_model
from nsa_testing import stored_run, tiny_config

NEEDLE = "tasks.needle.enabled=true"


@pytest.fixture
def run(clips, tokenizer, tmp_path):
    """The folder of a run, and its model."""
    config = tiny_config("model.intermediate_size=48", "data.positions=transformers", f"data.cache_dir={clips}")
    model = build_model(config, tokenizer)
    return stored_run(tmp_path / "runs" / "first-0123", config, model), model


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_run_is_where_the_next_one_begins(run, tokenizer):
    path, model = run
    config = load_config(None, [NEEDLE, f"model.path={path}", "training.steps=3"])
    assert (config.model.intermediate_size, config.model.num_layers) == (48, 2)
    assert (config.attention.partition.block_size, config.data.positions) == (4, "transformers")
    assert same_weights(build_model(config, tokenizer), model)
    shutil.copytree(path, f"{path}x")
    assert config_hash(config) != config_hash(load_config(None, [NEEDLE, f"model.path={path}x", "training.steps=3"]))


def test_what_the_weights_fix_cannot_be_set_to_another_value(run):
    path, _ = run
    load_config(None, [NEEDLE, f"model.path={path}", "model.intermediate_size=48", "model.num_layers=2"])
    with pytest.raises(ConfigError) as error:
        load_config(None, [NEEDLE, f"model.path={path}", "model.num_layers=3", "data.tokenizer=other"])
    assert [problem.path for problem in error.value.problems] == ["model.num_layers", "data.tokenizer"]
    assert f"3 is set, but model.path={path} was trained with 2; leave it out" in str(error.value)
    with pytest.raises(ConfigError, match=r"layers\.2: the model has layers 0 to 1"):
        load_config(None, [NEEDLE, f"model.path={path}", "attention.layers.2.method=dense"])


def test_a_design_may_be_another_where_the_weights_fit(run, tokenizer, caplog):
    path, model = run
    other = load_config(None, [NEEDLE, f"model.path={path}", "attention.branches.window.size=9"])
    assert build_model(other, tokenizer).attentions()[0].design.branches.window.size == 9
    with caplog.at_level(logging.WARNING):
        build_model(load_config(None, [NEEDLE, f"model.path={path}", "attention.compressor.kind=mlp"]), tokenizer)
    assert "start fresh" in caplog.text
    caplog.clear()
    dense = load_config(None, [NEEDLE, f"model.path={path}", "attention.method=dense"])
    with caplog.at_level(logging.WARNING):
        found = build_model(dense, tokenizer).state_dict()
    assert "this design has no use for 8 weights of plug-ins (such as model.language_model.layers.0." in caplog.text
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in found.items())


@pytest.mark.parametrize("kind", ["mlp", "constant"])
def test_gates_keep_the_columns_of_the_branches_that_stay(clips, tokenizer, tmp_path, kind):
    config = tiny_config(f"attention.gate.kind={kind}", "attention.branches.window.enabled=false")
    model = build_model(config, tokenizer)
    torch.nn.init.normal_(weight := dict(model.named_parameters())[column(kind)])
    path = stored_run(tmp_path / "run", config, model)
    heads = model.config.text_config.num_attention_heads
    before = weight.detach().reshape(heads, 2, -1)

    one = [NEEDLE, f"model.path={path}", "attention.branches.compression.enabled=false"]
    found = build_model(load_config(None, one), tokenizer).state_dict()[column(kind)]
    assert torch.equal(found.reshape(heads, 1, -1), before[:, 1:]), "selection alone"

    other = [*one, "attention.branches.window.enabled=true"]
    found = build_model(load_config(None, other), tokenizer).state_dict()[column(kind)].reshape(heads, 2, -1)
    assert torch.equal(found[:, 0], before[:, 1]), "selection"
    assert not found[:, 1].any(), "a window that was not trained starts as it does"


@pytest.mark.parametrize("kind", ["linear", "softmax"])
def test_gates_of_another_kind_start_fresh(run, tokenizer, caplog, kind):
    """Though their weights have names and shapes in common."""
    path, model = run
    torch.nn.init.normal_(dict(model.named_parameters())[column("mlp")])
    path = stored_run(
        Path(f"{path}-2"), tiny_config("model.intermediate_size=48", "data.positions=transformers"), model
    )
    with caplog.at_level(logging.WARNING):
        found = build_model(load_config(None, [NEEDLE, f"model.path={path}", f"attention.gate.kind={kind}"]), tokenizer)
    assert not found.state_dict()[column("mlp")].any() and "start fresh" in caplog.text


def column(kind):
    leaf = "down.weight" if kind == "mlp" else "logit"
    return f"model.language_model.layers.0.self_attn.method.sparse.gate.{leaf}"


def test_a_run_of_a_run_loads_when_the_first_is_gone(run, clips, tokenizer, tmp_path):
    path, model = run
    config = load_config(None, [NEEDLE, f"model.path={path}", f"data.cache_dir={clips}"])
    second = stored_run(tmp_path / "runs" / "second", config, model)
    third = load_config(None, [NEEDLE, f"model.path={second}"])
    assert same_weights(build_model(third, tokenizer), model)
    assert load_saved_config(f"{second}/config.yaml") == config
    (tmp_path / "runs" / "first-0123" / "checkpoints" / "last.ckpt").unlink()
    assert same_weights(load_model(second), model), "only the weights of its own"
    with pytest.raises(NsaLabError, match=r"first-0123/checkpoints/last\.ckpt does not exist; train first"):
        build_model(config, tokenizer)


def test_a_checkpoint_says_how_many_layers_there_are(run, tokenizer, tmp_path):
    _, model = run
    model.save_pretrained(tmp_path / "weights")
    start = [NEEDLE, f"model.path={tmp_path / 'weights'}"]
    load_config(None, [*start, "attention.layers.1.method=dense"])
    with pytest.raises(ConfigError, match=r"layers\.2-3: the model has layers 0 to 1"):
        load_config(None, [*start, "attention.layers.2-3.method=dense"])
    file = tmp_path / "weights" / "config.json"
    ours = file.read_text()
    stored = json.loads(ours)
    file.write_text(json.dumps(stored | stored.pop("text_config")))  # as Qwen's own files on the hub
    with pytest.raises(ConfigError, match="the model has layers 0 to 1"):
        load_config(None, [*start, "attention.layers.2-3.method=dense"])
    unseen = load_config(
        None, [NEEDLE, "model.path=Qwen/Qwen2.5-VL-7B-Instruct", "attention.layers.20-27.method=dense"]
    )
    file.write_text(ours)
    here = dataclasses.replace(unseen, model=dataclasses.replace(unseen.model, path=str(tmp_path / "weights")))
    with pytest.raises(ConfigError, match=r"layers\.20-27: the model has layers 0 to 1"):
        build_model(here, tokenizer)


def test_weights_of_half_precision_are_trained_in_float32(run, tokenizer, tmp_path):
    _, model = run
    model.bfloat16().save_pretrained(tmp_path / "weights")
    start = [NEEDLE, f"model.path={tmp_path / 'weights'}", "data.positions=transformers"]
    for precision, dtype in (("bf16-mixed", torch.float32), ("bf16-true", torch.bfloat16)):
        built = build_model(load_config(None, [*start, f"training.precision={precision}"]), tokenizer)
        assert {weight.dtype for weight in built.parameters()} == {dtype}


def test_a_fine_tuned_checkpoint_is_restored_from_its_run(run, tokenizer, clips, tmp_path):
    """The run holds weights of its own; of the checkpoint that it began with, config.json is enough."""
    _, model = run
    weights = tmp_path / "weights"
    model.save_pretrained(weights)
    config = load_config(None, [NEEDLE, f"model.path={weights}", f"data.cache_dir={clips}"])
    tuned = stored_run(tmp_path / "runs" / "tuned", config, model)
    (weights / "model.safetensors").unlink()
    _, restored = restore_model(tmp_path / "runs" / "tuned")
    assert same_weights(restored, model)
    assert tokens_per_second(load_config(None, [NEEDLE, f"model.path={tuned}"]).model) == 2
    assert "path: " in to_yaml(restored_config := load_saved_config(f"{tuned}/config.yaml"))
    assert restored_config.model.path == str(weights)


@pytest.mark.parametrize(
    "damage",
    [
        *({part: value} for part in PARTS for value in (None, "x" if PARTS[part] is not str else 5)),
        {"state_dict": {}},
        {"state_dict": {"model.a": 3}},
        {"optimizer_states": []},
    ],
    ids=str,
)
def test_a_checkpoint_that_lacks_a_part_is_damaged(tmp_path, damage):
    model = torch.nn.Linear(1, 1)
    run = stored_run(tmp_path / "run", tiny_config(), model)
    assert set(last_weights(tmp_path / "run")) == {"weight", "bias"}
    file = f"{run}/checkpoints/last.ckpt"
    torch.save(torch.load(file, weights_only=True) | damage, file)
    with pytest.raises(NsaLabError, match=r"last\.ckpt is damaged .*(no |tensors)") as error:
        last_weights(tmp_path / "run")
    assert "\n" not in str(error.value)
    torch.save([1], file)
    with pytest.raises(NsaLabError, match="is damaged"):
        last_weights(tmp_path / "run")
