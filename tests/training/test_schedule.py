import pytest
import torch
from torch import nn

from nsa_lab.config.schema import TrainingConfig
from nsa_lab.training.schedule import build_optimizer, learning_rate_factor, parameter_groups

CONFIG = TrainingConfig(steps=100, warmup_steps=10, min_learning_rate_ratio=0.1)


def test_warm_up_is_linear_and_ends_at_the_full_rate():
    assert [learning_rate_factor(step, CONFIG) for step in (0, 4, 9)] == [0.1, 0.5, 1.0]


def test_cosine_falls_from_full_rate_to_the_floor():
    assert learning_rate_factor(10, CONFIG) == 1.0
    assert learning_rate_factor(55, CONFIG) == pytest.approx(0.55)
    assert learning_rate_factor(100, CONFIG) == pytest.approx(0.1)
    factors = [learning_rate_factor(step, CONFIG) for step in range(10, 101)]
    assert factors == sorted(factors, reverse=True)


def test_no_warm_up_starts_at_the_full_rate():
    assert learning_rate_factor(0, TrainingConfig(warmup_steps=0)) == 1.0


def test_warm_up_longer_than_the_run_does_not_divide_by_zero():
    assert learning_rate_factor(9, TrainingConfig(steps=5, warmup_steps=10)) == 1.0


def test_weight_decay_spares_embeddings_biases_and_norms():
    model = nn.ModuleDict({"embed": nn.Embedding(5, 4), "linear": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})
    decayed, plain = parameter_groups(model, 0.1)
    assert [id(p) for p in decayed["params"]] == [id(model["linear"].weight)]
    assert decayed["weight_decay"] == 0.1 and plain["weight_decay"] == 0
    assert len(plain["params"]) == 4


def test_tied_head_counts_as_embedding_and_frozen_weights_are_left_out():
    model = nn.ModuleDict({"embed": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
    model["head"].weight = model["embed"].weight
    model["frozen"] = nn.Linear(4, 4).requires_grad_(False)
    decayed, plain = parameter_groups(model, 0.1)
    assert not decayed["params"] and len(plain["params"]) == 1


def test_optimizer_takes_the_scheduled_steps():
    weight = nn.Linear(3, 3)
    optimizer, schedule = build_optimizer(weight, TrainingConfig(learning_rate=1.0, warmup_steps=2, steps=4))
    rates = []
    for _ in range(3):
        rates.append(optimizer.param_groups[0]["lr"])
        weight(torch.ones(3)).sum().backward()
        optimizer.step()
        schedule.step()
    assert rates == [0.5, 1.0, 1.0]
