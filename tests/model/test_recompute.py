"""Activation checkpointing by policy: the same gradients, and less of a layer computed twice."""

import logging
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nsa_lab.model import build_model
from nsa_lab.model.recompute import Memory, recompute_activations
from nsa_testing import assert_close, model_batch, tiny_config

SHAPE = ("model.hidden_size=96", "model.num_heads=6", "model.num_kv_heads=2", "model.intermediate_size=200")
SHAPES = [(3, (4, 2, 3), 5), (2, (3, 2, 2), 4)]


class Products(TorchDispatchMode):
    """Counts matrix products by the widest side of their weight."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.found[max(args[-1].shape)] += 1
        return func(*args, **(kwargs or {}))


def run(tokenizer, policy, *overrides):
    """The gradients of a step, and the products of the decoder's widths."""
    torch.manual_seed(0)
    model = build_model(
        tiny_config(
            "model.hidden_size=96",
            "model.num_heads=6",
            "model.num_kv_heads=2",
            "model.intermediate_size=200",
            *overrides,
        ),
        tokenizer,
    )
    model.train()
    if policy is not None:
        recompute_activations(model, policy)
    with Products() as products:
        model(**model_batch(model, SHAPES), use_cache=False).logits.square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters()}, products.found


@pytest.mark.parametrize("overrides", [(), ("attention.method=dense",), ("attention.partition.kind=router",)])
@pytest.mark.parametrize("policy", ["full", "selective", "auto"])
def test_every_policy_gives_the_same_gradients(tokenizer, policy, overrides):
    plain, _ = run(tokenizer, None, *overrides)
    found, _ = run(tokenizer, policy, *overrides)
    for name, grad in plain.items():
        assert (grad is None) == (found[name] is None), name
        if grad is not None:
            assert_close(found[name], grad, 1e-6, name)


def test_selective_repeats_only_the_wide_products(tokenizer):
    plain, full, selective = (run(tokenizer, policy)[1] for policy in (None, "full", "selective"))
    assert full[96] > plain[96] and full[200] > plain[200]
    assert selective[96] == plain[96]
    assert selective[200] == full[200]


def test_auto_fills_the_memory_deepest_layers_first():
    memory = Memory(4)
    assert [memory.way(number) for number in range(4)] == ["full"] * 4
    memory.kept = {"selective": 50.0, "everything": 150.0}
    for free, expected in ((3_000, (0, 0)), (3_400 + 860, (2, 0)), (5_200, (4, 0)), (6_300, (4, 1)), (99_999, (4, 4))):
        assert memory.fit(free, 10, 10) == expected, free
    memory.selective, memory.everything = 3, 1
    assert [memory.way(number) for number in range(4)] == ["full", "selective", "selective", "everything"]


def test_auto_without_a_gpu_says_that_it_is_full(tokenizer, caplog):
    with caplog.at_level(logging.INFO, "nsa_lab.model.recompute"):
        run(tokenizer, "auto")
    assert [record.message for record in caplog.records] == [
        "training.recompute=auto on cpu: inputs alone are kept (full)"
    ]
