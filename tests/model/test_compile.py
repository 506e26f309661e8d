"""The compiled dense parts: the same numbers, names and gradients as transformers' own."""

import copy
import logging
import pickle

import pytest
import torch
from torch import nn

from nsa_lab.config import load_config
from nsa_lab.errors import NsaLabError
from nsa_lab.model import build_model, recompute
from nsa_lab.model.compile import compile_dense, compiles
from nsa_lab.model.recompute import recompute_activations
from nsa_testing import assert_close, model_batch, tiny_config

SHAPES = [(3, (4, 2, 3), 5), (2, (3, 2, 2), 4)]
OTHER = [(2, (2, 2, 2), 3)]


def make(tokenizer, dtype=torch.float32):
    torch.manual_seed(0)
    model = build_model(tiny_config(), tokenizer).to(dtype).train()
    for block in model.model.visual.blocks:  # columns to pad, and biases that are not zero
        nn.init.normal_(block.mlp.gate_proj.bias)
    return model


def step(model, shapes):
    loss = model(**model_batch(model, shapes), use_cache=False).logits.float().square().mean()
    names, parameters = zip(*model.named_parameters(), strict=True)
    return loss.detach(), dict(zip(names, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True))


def assert_same(compiled, plain, shapes, tolerance):
    (loss, gradients), (expected, theirs) = step(compiled, shapes), step(plain, shapes)
    assert_close(loss, expected, tolerance)
    assert gradients.keys() == theirs.keys()
    for name, grad in theirs.items():
        assert (grad is None) == (gradients[name] is None), name
        if grad is not None:
            assert_close(gradients[name], grad, tolerance, name)


@pytest.mark.parametrize("policy", [None, "selective"])
def test_the_parts_compute_the_same(tokenizer, policy):
    plain, compiled = make(tokenizer), make(tokenizer)
    compile_dense(compiled, backend="eager")
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    if policy is not None:
        recompute_activations(compiled, policy)
    for shapes in (SHAPES, OTHER):
        assert_same(compiled, plain, shapes, 1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("policy", [None, "full", "selective"])
def test_the_compiler_computes_the_same(tokenizer, policy):
    plain, compiled = make(tokenizer), make(tokenizer)
    compile_dense(compiled)
    if policy is not None:
        recompute_activations(compiled, policy)
    for shapes in (SHAPES, OTHER):
        assert_same(compiled, plain, shapes, 1e-4)


def test_a_copy_and_a_pickle_are_compiled_too(tokenizer):
    model = make(tokenizer)
    compile_dense(model, backend="eager")
    batch = model_batch(model, OTHER)
    expected = model(**batch, use_cache=False).logits
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other.model.visual.blocks[0].mlp) is type(model.model.visual.blocks[0].mlp)
        assert torch.equal(other(**batch, use_cache=False).logits, expected)


def test_another_activation_is_refused(tokenizer):
    model = make(tokenizer)
    model.config.vision_config.hidden_act = "gelu"
    with pytest.raises(NsaLabError, match=r"set model\.compile=false"):
        compile_dense(model)


def test_selective_recomputation_that_would_undo_it_is_refused(tokenizer, monkeypatch):
    model = make(tokenizer)
    monkeypatch.setattr(recompute, "_compiles_inside", lambda: False)
    recompute_activations(model, "selective")
    compile_dense(model, backend="eager")
    recompute_activations(model, "full")
    with pytest.raises(NsaLabError, match=r"set training\.recompute=full, or model\.compile=false"):
        recompute_activations(model, "selective")


def test_auto_compiles_wide_models_on_a_gpu_and_says_so(caplog):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    with caplog.at_level(logging.INFO, "nsa_lab.model.compile"):
        assert [compiles("auto", width, device) for width, device in ((3584, gpu), (128, gpu), (3584, cpu))] == [
            True, False, False,
        ]  # fmt: skip
    assert [record.message.split(" (")[0] for record in caplog.records] == [
        "model.compile=auto on cuda: on",
        "model.compile=auto on cuda: off",
    ]
    assert compiles("true", 128, cpu) and not compiles("false", 3584, gpu)


@pytest.mark.parametrize("written", ["true", "false", "auto"])
def test_true_and_false_are_read_as_written(written):
    assert load_config(None, ["tasks.needle.enabled=true", f"model.compile={written}"]).model.compile == written
