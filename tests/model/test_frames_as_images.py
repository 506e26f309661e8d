"""A video laid out as images, each between two marks: what the model makes of it."""

import pytest
import torch

from nsa_lab.data import Sample, Turn, VideoDataset, pack
from nsa_lab.data.positions import IMAGE
from nsa_lab.model import build_model
from nsa_testing import assert_close, dense_qwen, tiny_config
from nsa_videos import write


@pytest.fixture
def make(tmp_path, tokenizer):
    """A model, and examples of videos of so many frames of 56 x 84 pixels, laid out as images."""

    def make(frames, *overrides):
        config = tiny_config("data.frames_as=images", *overrides)
        turns = (Turn("What was it?", "red"),)
        files = [write(tmp_path / f"{n}.mp4", times=range(0, 15 * n, 15), size=(56, 84), noise=True) for n in frames]
        samples = [Sample(file.stem, file, turns, "mine") for file in files]
        data = VideoDataset(samples, tokenizer, config.data)
        torch.manual_seed(0)
        model = build_model(config, tokenizer).eval()
        for name, parameter in model.named_parameters():
            if ".sparse." in name:
                torch.nn.init.normal_(parameter, std=0.1)
        return model, [data[at] for at in range(len(data))]

    return make


def logits(model, batch):
    with torch.no_grad():
        return model(**{key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}).logits


def inputs(*examples):
    names = ("input_ids", "position_ids", "mm_token_type_ids", "pixel_values_videos", "video_grid_thw")
    packed = pack(examples)
    return {name: packed[name] for name in names}


def test_a_dense_model_is_transformers_own_on_images(make):
    model, (example,) = make([5], "attention.method=dense")
    video, image = model.config.video_token_id, model.config.image_token_id
    ids = torch.where(example.input_ids == video, image, example.input_ids)[None]
    images = {
        "input_ids": ids,
        "mm_token_type_ids": IMAGE * (ids == image),
        "pixel_values": example.pixel_values,
        "image_grid_thw": example.grid_thw,
        "attention_mask": torch.ones_like(ids),
    }
    assert example.grid_thw.tolist() == [[1, 6, 4]] * 5
    assert_close(logits(model, inputs(example)), logits(dense_qwen(model), images), 1e-5)


@pytest.mark.parametrize(
    "kind", ["uniform", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("frame", "scene", "tile"))]
)
def test_packed_samples_of_images_are_those_alone(make, kind):
    model, examples = make([5, 2, 8], f"attention.partition.kind={kind}")
    packed, start = logits(model, inputs(*examples)), 0
    for example in examples:
        end = start + len(example.input_ids)
        assert_close(packed[:, start:end], logits(model, inputs(example)), 1e-5, f"{kind} at {start}")
        start = end
