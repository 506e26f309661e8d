"""Frequencies of the rotary embeddings keep the precision that they are made in."""

import copy

import pytest
import torch

from nsa_lab.model import build_model
from nsa_testing import tiny_config


@pytest.fixture(scope="module")
def model(tokenizer):
    return build_model(tiny_config(), tokenizer)


def frequencies(model):
    return dict(model.named_buffers())


def test_weights_in_half_precision_leave_frequencies_as_they_were(model):
    half = copy.deepcopy(model).bfloat16()
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
    assert len(frequencies(half)) == 4
    for name, buffer in frequencies(half).items():
        assert torch.equal(buffer, frequencies(model)[name]) and buffer.dtype == torch.float32, name
    assert {buffer.dtype for buffer in frequencies(half.double()).values()} == {torch.float64}


def test_angles_at_far_positions_are_those_of_float32(model):
    half = copy.deepcopy(model).bfloat16()
    position_ids = torch.tensor([3000, 100_000]).expand(3, 1, -1)
    x = torch.zeros(1, 2, 64)
    for wide, narrow in zip(*(m.model.language_model.rotary_emb(x, position_ids) for m in (model, half)), strict=True):
        assert torch.equal(wide, narrow)


def test_frequencies_move_to_another_device_with_the_weights(model):
    moved = copy.deepcopy(model).to("meta", torch.bfloat16)
    assert all(buffer.is_meta and buffer.dtype == torch.float32 for buffer in frequencies(moved).values())
