"""Activation checkpointing by policy: the same gradients, and less of a layer computed twice."""

import logging
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nsa_lab.model import build_model
from nsa_lab.model.recompute import Memory, recompute_activations
from nsa_testing import assert_close, model_batch, requires_gpu, tiny_config

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
    memory = Memory(5)
    assert [memory.way(number) for number in range(5)] == ["full"] * 5
    assert [memory.trial(number) for number in range(5)] == [None, None, "attention", "selective", "everything"]
    memory.kept = {"attention": 40.0, "selective": 60.0, "everything": 160.0}
    # The deepest layer keeps 150 bytes a token beyond its input; the other four 30 for attention, 20 more, 100 more.
    room = ((149, (0, 0, 0)), (150, (1, 1, 1)), (180, (2, 1, 1)), (270, (5, 1, 1)), (330, (5, 4, 1)), (450, (5, 5, 2)))
    for free, expected in (*room, (9_999, (5, 5, 5))):
        memory.counts, memory.longest = memory.fit(10 * free, 10, 10), 10
        memory.count(10, 10)
        assert tuple(memory.counts.values()) == expected and memory.spent <= 10 * free, free
    memory.counts = {"attention": 4, "selective": 2, "everything": 1}
    ways = ["full", "attention", "attention", "selective", "everything"]
    assert [memory.way(number) for number in range(5)] == ways and {memory.trial(n) for n in range(5)} == {None}


def test_auto_never_keeps_more_than_the_peak_has_left_free():
    limit, width = 10_000.0, 10

    def step(memory, tokens, base, gradients):
        """The peak of a step: what is in use, what layers keep, and what a backward takes besides."""
        step.peak = base if memory.settle(limit - step.peak, base, tokens, width) else step.peak
        trial = {number: memory.trial(number) for number in range(5)}
        for way in filter(None, trial.values()):
            memory.tried(way, tokens * sizes[way], torch.empty(tokens, width, dtype=torch.int8))
        kept = tokens * sum(sizes[trial[n] or memory.way(n)] - width for n in range(5))
        step.peak = max(step.peak, base + kept + gradients)
        assert step.peak <= limit
        return sum(memory.counts.values())

    step.peak, memory = 0.0, Memory(5)
    sizes = {"full": 10.0, "attention": 40.0, "selective": 60.0, "everything": 160.0}
    # The optimiser's state comes after the first step; a longer batch, a shorter one, and gradients that stay.
    steps = [(10, 2_000, 1_000), (10, 4_000, 1_000), (10, 4_000, 1_000), (12, 4_100, 1_200), (12, 4_100, 1_200)]
    steps += [(6, 3_900, 600), (12, 5_100, 1_200), (12, 4_100, 1_200), (12, 5_100, 1_200)]
    counts = [step(memory, *values) for values in steps]
    assert counts[0] == counts[3] == 0 and all(count > 0 for place, count in enumerate(counts) if place not in (0, 3))
    assert counts[5] == 15 and counts[6] < counts[4]


@pytest.mark.gpu
@requires_gpu
@pytest.mark.parametrize("method", ["nsa", "dense"])
def test_auto_keeps_what_fits_and_the_gradients_are_the_same(tokenizer, method, caplog):
    def gradients(policy):
        torch.manual_seed(0)
        model = build_model(tiny_config("model.num_layers=5", f"attention.method={method}"), tokenizer).cuda().train()
        recompute_activations(model, policy)
        for _ in range(3):  # the second forward knows what each way keeps
            model.zero_grad(set_to_none=True)
            batch = {name: x.cuda() for name, x in model_batch(model, SHAPES).items()}
            model(**batch, use_cache=False).logits.square().mean().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    full = gradients("full")
    with caplog.at_level(logging.INFO, "nsa_lab.model.recompute"):
        auto = gradients("auto")
    assert [record.message.split(": ", 2)[2] for record in caplog.records] == ["5 attention, 5 selective, 5 everything"]
    for name, grad in full.items():
        assert_close(auto[name], grad, 1e-4, name)


def test_auto_without_a_gpu_says_that_it_is_full(tokenizer, caplog):
    with caplog.at_level(logging.INFO, "nsa_lab.model.recompute"):
        run(tokenizer, "auto")
    assert [record.message for record in caplog.records] == [
        "training.recompute=auto on cpu: inputs alone are kept (full)"
    ]
