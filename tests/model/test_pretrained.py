"""Qwen2.5-VL's published weights in our model, and our weights in transformers' Auto classes."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from nsa_lab.attention.trace import Trace
from nsa_lab.errors import NsaLabError
from nsa_lab.model import VideoNSAForConditionalGeneration, build_model, gate_metrics, load_model
from nsa_lab.model.checkpoint import stored_design
from nsa_testing import model_batch, tiny_config

SHAPES = [(3, (4, 2, 3), 5)]


@pytest.fixture(scope="module")
def ours(tokenizer):
    return build_model(tiny_config(), tokenizer)


@pytest.fixture(scope="module")
def published(ours, tmp_path_factory):
    """A folder like Qwen2.5-VL's on the hub: a plain model under the hub's names; and that model."""
    stored = ours.config.to_dict() | {"model_type": "qwen2_5_vl"}
    stored["text_config"].pop("video_nsa")
    stored.pop("positions")
    qwen = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(stored)).eval()
    folder = tmp_path_factory.mktemp("published")
    qwen.save_pretrained(folder)
    return folder, qwen


@pytest.fixture
def nan_in_fresh_memory():
    """A parameter that from_pretrained does not initialise holds what was in its memory: here, NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


def test_weights_under_the_hubs_names_arrive(published):
    folder, qwen = published
    names = set(load_file(folder / "model.safetensors"))
    assert "model.layers.0.self_attn.q_proj.weight" in names and "visual.patch_embed.proj.weight" in names
    state = load_model(folder, tiny_config().attention).state_dict()
    for name, weight in qwen.state_dict().items():
        assert torch.equal(state[name], weight), name


@pytest.mark.parametrize(
    ("kind", "start"), [("mlp", 0.5), ("linear", 0.5), ("softmax", 1 / 3), ("constant", 0.5), ("fixed", 1.0)]
)
def test_fresh_gates_and_compressors_start_where_they_should(published, nan_in_fresh_memory, kind, start):
    design = tiny_config(f"attention.gate.kind={kind}", "attention.compressor.kind=mlp").attention
    model = load_model(published[0], design).eval()
    fresh = {name: weight for name, weight in model.named_parameters() if ".sparse." in name}
    assert fresh and all(weight.isfinite().all() and weight.abs().max() < 2 for weight in fresh.values())
    assert all((weight == 0).all() for name, weight in fresh.items() if "down" in name or "logit" in name)
    trace = Trace("gate_means")
    with torch.no_grad():
        logits = model(**model_batch(model, SHAPES), use_cache=False, trace=trace).logits
    assert logits.isfinite().all()
    means = gate_metrics(trace)
    assert means and means == pytest.approx(dict.fromkeys(means, start))


def test_auto_classes_refuse_our_checkpoint(ours, tmp_path):
    ours.save_pretrained(tmp_path)
    for auto in (AutoModelForImageTextToText, AutoModelForCausalLM):
        with pytest.raises(ValueError, match="video_nsa"):
            auto.from_pretrained(tmp_path)
    assert isinstance(load_model(tmp_path), VideoNSAForConditionalGeneration)


def released_folder(published, path, prefix, **fields):
    """The weights of a made-up checkpoint in `path`: VideoNSA's names after `prefix`, its gates and config fields."""
    folder, _ = published
    stored = json.loads((folder / "config.json").read_text())
    stored["text_config"] |= {"block_counts": 8, "window_size": 12} | fields
    text = stored["text_config"]
    hidden, heads = text["hidden_size"], text["num_attention_heads"]
    weights = load_file(folder / "model.safetensors")
    weights = {name.replace("model.layers", f"{prefix}layers"): weight for name, weight in weights.items()}
    torch.manual_seed(0)
    for layer in range(text["num_hidden_layers"]):
        gate = f"{prefix}layers.{layer}.self_attn.g_proj_"
        weights |= {f"{gate}1.weight": torch.randn(hidden, hidden), f"{gate}1.bias": torch.randn(hidden)}
        weights |= {f"{gate}2.weight": torch.randn(3 * heads, hidden), f"{gate}2.bias": torch.randn(3 * heads)}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(stored))
    return weights


@pytest.mark.parametrize("prefix", ["model.", "model.language_model."])
def test_the_published_checkpoint_s_names_and_settings_are_read(published, tmp_path, prefix, caplog):
    weights = released_folder(published, tmp_path, prefix)
    qwen = published[1]

    model = load_model(tmp_path)
    attention = model.attentions()[1]
    design, gate = attention.design, attention.method.sparse["gate"]
    assert (design.method, design.partition.block_size) == ("released", 64)
    assert (design.branches.selection.block_count, design.branches.window.size) == (8, 12)
    assert torch.equal(gate.up.weight, weights[f"{prefix}layers.1.self_attn.g_proj_1.weight"])
    assert torch.equal(gate.down.bias, weights[f"{prefix}layers.1.self_attn.g_proj_2.bias"])
    assert gate.config.temperature == 0.3
    state = model.state_dict()
    assert all(torch.equal(state[name], weight) for name, weight in qwen.state_dict().items())
    assert stored_design(tmp_path)["method"] == "released"

    assert not caplog.text
    papers = load_model(tmp_path, tiny_config().attention)
    assert "was trained with attention.method=released and is used with nsa" in caplog.text
    assert torch.equal(papers.attentions()[1].method.sparse.gate.up.weight, gate.up.weight), "the paper's method too"
    model.save_pretrained(tmp_path / "again")
    again = load_model(tmp_path / "again")
    assert again.attentions()[1].design == design
    assert all(torch.equal(weight, state[name]) for name, weight in again.state_dict().items())
    papers.save_pretrained(tmp_path / "papers")
    assert load_model(tmp_path / "papers").attentions()[1].design == papers.attentions()[1].design
    assert stored_design(tmp_path / "papers")["method"] == "nsa", "what it was saved under, whatever it came from"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("model.layers.1.self_attn.q_proj.bias"), "1 missing .such as model.language_model.layers.1"),
        (lambda w: w.update({"model.layers.0.self_attn.phi.weight": torch.ones(2)}), "1 unexpected .such as .*phi"),
        (lambda w: w.update({"model.layers.0.self_attn.g_proj_2.bias": torch.ones(4)}), "1 of another shape .*bias"),
    ],
)
def test_a_published_checkpoint_with_other_names_is_refused_in_one_line(published, tmp_path, change, said):
    weights = released_folder(published, tmp_path, "model.")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NsaLabError, match=said) as error:
        load_model(tmp_path)
    assert "\n" not in str(error.value) and f"model.path={tmp_path}" in str(error.value)


@pytest.mark.parametrize("fields", [{"block_counts": None}, {"block_counts": [8, 8]}, {"window_size": 0}], ids=str)
def test_published_settings_that_are_no_numbers_are_named(published, tmp_path, fields):
    released_folder(published, tmp_path, "model.", **fields)
    for read in (load_model, stored_design):
        with pytest.raises(NsaLabError, match=f"{next(iter(fields))}=.* is no positive integer"):
            read(tmp_path)
