import json
import shutil

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil
from transformers.utils import logging as theirs

import nsa_lab
from nsa_lab.cli.app import main
from nsa_lab.data.pixels import patchify, resize
from nsa_lab.model import VideoNSAForConditionalGeneration, build_model
from nsa_lab.model.quiet import without_report
from nsa_testing import model_batch, stored_run, tiny_config

SHAPES = [(3, (4, 2, 3), 5)]


@pytest.fixture(scope="module")
def trained(tokenizer, tmp_path_factory, clips):
    """A run's folder, and the model that it ended with."""
    layers = "attention.layers.1.branches.window.size=5"
    config = tiny_config("attention.gate.kind=linear", layers, f"data.cache_dir={clips}", "data.max_pixels=3136")
    model = build_model(config, tokenizer).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return stored_run(tmp_path_factory.mktemp("trained") / "run", config, model), model


def export(*arguments):
    with pytest.raises(SystemExit) as end:
        main(["export", *map(str, arguments)])
    return end.value.code


def test_an_exported_run_has_the_same_design_and_logits(trained, tmp_path, capsys, caplog):
    run, model = trained
    folder = tmp_path / "hub" / "mine"
    assert not export(run, folder)
    said = capsys.readouterr()
    assert "nsa_lab.load_model" in said.out and not said.err and theirs.is_progress_bar_enabled()
    loaded = VideoNSAForConditionalGeneration.from_pretrained(folder).eval()
    batch = model_batch(model, SHAPES)
    with torch.no_grad():
        assert torch.equal(loaded(**batch, use_cache=False).logits, model(**batch, use_cache=False).logits)
    assert [a.design for a in loaded.attentions()] == [a.design for a in model.attentions()]
    assert loaded.attentions()[1].design.branches.window.size == 5
    theirs.add_handler(caplog.handler)
    nsa_lab.load_model(folder, ["attention.gate.kind=mlp"])
    assert "are not in the checkpoint and start fresh" in caplog.text and "LOAD REPORT" not in caplog.text
    with pytest.raises(OSError), without_report():
        theirs.get_logger("transformers.modeling_utils").warning("LOAD REPORT")
        raise OSError
    theirs.remove_handler(caplog.handler)
    assert "LOAD REPORT" in caplog.text, "an error may refer to it"
    ready = nsa_lab.load_model(folder)
    assert ready.experiment is not None and ready.experiment.attention.gate.kind == "linear"
    names = {file.name for file in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "experiment.yaml", "README.md"} <= names


def test_bfloat16_halves_the_weights(trained, tmp_path):
    run, model = trained
    sizes = []
    for dtype in ("float32", "bfloat16"):
        assert not export(run, tmp_path / dtype, "--dtype", dtype)
        sizes.append((tmp_path / dtype / "model.safetensors").stat().st_size)
    assert sizes[1] < 0.6 * sizes[0]
    assert json.loads((tmp_path / "bfloat16" / "config.json").read_text())["dtype"] == "bfloat16"
    loaded = VideoNSAForConditionalGeneration.from_pretrained(tmp_path / "bfloat16", dtype="float32")
    for (name, weight), own in zip(loaded.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(weight, own.bfloat16().float()), name


def test_tokenizer_and_processors_lie_beside(trained, tmp_path, tokenizer):
    folder = tmp_path / "mine"
    assert not export(trained[0], folder)
    found = AutoTokenizer.from_pretrained(folder)
    assert found.get_vocab() == tokenizer.get_vocab() and found.chat_template == tokenizer.chat_template
    image = torch.randint(0, 256, (1, 3, 90, 120), dtype=torch.uint8)
    theirs = Qwen2VLImageProcessorPil.from_pretrained(folder)(list(image), return_tensors="pt")
    ours, grid = patchify(resize(image, 784, 3136))
    assert theirs["image_grid_thw"].tolist() == [list(grid)]
    # Pillow's resizing rounds otherwise than torch's, by a few of 255 steps at most.
    assert (theirs["pixel_values"] - ours).abs().mean() < 0.05
    stored = json.loads((folder / "video_preprocessor_config.json").read_text())
    assert stored["size"] == {"shortest_edge": 784, "longest_edge": 3136}
    assert stored["processor_class"] == "Qwen2_5_VLProcessor"


def test_what_cannot_be_exported_is_said(trained, tmp_path, capsys):
    run, _ = trained
    (tmp_path / "link").symlink_to("nowhere")
    for arguments, said in (
        ((tmp_path / "nowhere", tmp_path), "exists; name a new folder"),  # said before anything is loaded
        ((run, tmp_path / "link"), "link exists; name a new folder"),
        ((tmp_path / "nowhere", tmp_path / "x"), "does not exist; give the run directory"),
        ((run, tmp_path), "exists; name a new folder"),
        ((run, tmp_path / "x", "--dtype", "int4"), "'int4' is not one of 'float32', 'bfloat16'"),
    ):
        assert export(*arguments) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_run_is_read_back_without_weights_being_drawn(trained, monkeypatch):
    run, model = trained
    drawn, normal = [], torch.Tensor.normal_

    def noted(x, *given, **named):
        drawn.append(x.device.type)
        return normal(x, *given, **named)

    monkeypatch.setattr(torch.Tensor, "normal_", noted)
    loaded = nsa_lab.load_model(run)
    assert set(drawn) <= {"meta"} and not any(x.is_meta for x in [*loaded.parameters(), *loaded.buffers()])
    assert loaded.lm_head.weight is loaded.model.language_model.embed_tokens.weight
    assert all(
        torch.equal(x, y) for x, y in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True)
    )
    assert all(x.requires_grad for x in loaded.parameters())


def test_a_loaded_model_does_not_change_with_its_file(trained, tmp_path):
    run, model = trained
    shutil.copytree(run, tmp_path / "run")
    loaded, file = nsa_lab.load_model(tmp_path / "run"), tmp_path / "run/checkpoints/last.ckpt"
    with open(file, "r+b") as stream:
        stream.write(b"\1" * file.stat().st_size)
    for weight, own in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(weight, own)


def test_a_full_disk_is_said_and_leaves_nothing(trained, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(VideoNSAForConditionalGeneration, "save_pretrained", full)
    assert export(trained[0], tmp_path / "none") == 2
    err = capsys.readouterr().err
    assert "No space left on device" in err and "fault of nsa-lab" not in err and not list(tmp_path.iterdir())
