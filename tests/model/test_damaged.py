"""Folders of weights that were cut off, edited or never one: one line that names the folder."""

import json
import os
import shutil

import pytest

from nsa_lab.errors import NsaLabError
from nsa_lab.model import build_model, load_model
from nsa_testing import tiny_config

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def whole(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    build_model(tiny_config(), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "weights")


def refused(folder):
    with pytest.raises(NsaLabError) as error:
        load_model(folder, tiny_config().attention)
    text = str(error.value)
    assert text.startswith(f"model.path={folder}") and "\n" not in text and len(text) < 400 + len(str(folder)), text
    return text


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        "",
        "{",
        "5",
        "null",
        '{"model_type": "qwen2_5_vl"}',
        '{"model_type": "video_nsa"}',
        '{"model_type": []}',
    ],
)
def test_a_config_that_is_none(folder, text):
    (folder / "config.json").write_text(text)
    refused(folder)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("text_config", 5),
        ("vision_config", None),
        ("text_config", {"hidden_size": "wide"}),
        ("text_config", {"num_hidden_layers": None}),
        ("text_config", {"rope_parameters": []}),
        ("vision_config", {"depth": "deep"}),
        ("vision_config", {"num_heads": 0}),
    ],
)
def test_a_config_with_a_wrong_part(folder, part, changes):
    stored = json.loads((folder / "config.json").read_text())
    stored[part] = stored[part] | changes if isinstance(changes, dict) else changes
    (folder / "config.json").write_text(json.dumps(stored))
    refused(folder)


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_weights_that_were_cut_off(folder, size):
    os.truncate(folder / WEIGHTS, size if size >= 0 else (folder / WEIGHTS).stat().st_size + size)
    assert "cannot be loaded" in refused(folder)


@pytest.mark.parametrize("index", ["[]", "{", '{"weight_map": 3}'])
def test_an_index_that_is_none(folder, index):
    (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
    (folder / f"{WEIGHTS}.index.json").write_text(index)
    refused(folder)


def test_no_weights_at_all(folder):
    (folder / WEIGHTS).unlink()
    refused(folder)
