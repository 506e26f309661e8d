"""The vision tower's faster forms compute what transformers' do."""

import pytest
import torch
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

from nsa_lab.model.vision import LinearPatchEmbed, speed_up


@pytest.mark.parametrize("patches", [1, 4, 12])
def test_patches_are_embedded_as_by_the_convolution(patches):
    theirs = qwen.Qwen2_5_VisionPatchEmbed(embed_dim=24)
    ours = LinearPatchEmbed(embed_dim=24)
    ours.load_state_dict(theirs.state_dict())
    pixels = torch.randn(patches, 3 * 2 * 14 * 14)
    expected, found = theirs(pixels), ours(pixels)
    torch.testing.assert_close(found, expected)
    for module, out in ((theirs, expected), (ours, found)):
        (out * torch.arange(24)).sum().backward()
        assert module.proj.weight.grad is not None
    torch.testing.assert_close(ours.proj.weight.grad, theirs.proj.weight.grad)


def test_a_tower_keeps_its_names():
    config = Qwen2_5_VLConfig().vision_config
    config.update({"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 32})
    tower = qwen.Qwen2_5_VisionTransformerPretrainedModel._from_config(config)
    names = {name: value.shape for name, value in tower.state_dict().items()}
    speed_up(tower)
    assert {name: value.shape for name, value in tower.state_dict().items()} == names
