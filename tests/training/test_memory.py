"""A GPU whose memory does not do: one line with numbers and advice, a snapshot, and no checkpoint lost."""

import dataclasses
import os
import pickle

import pytest
import torch

from nsa_lab.config.identity import config_hash
from nsa_lab.errors import NsaLabError
from nsa_lab.model.trained import check_readable
from nsa_lab.training import memory, module, run
from nsa_lab.training.memory import anew, going_on, records
from nsa_lab.training.ranks import ALONE, Ranks

TEXT = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.00 GiB is free."
    "\nIncluding non-PyTorch memory, this process has 78.00 GiB memory in use."
)


def end_in_the_fifth_batch(monkeypatch, error):
    score, calls = module.score_answers, []

    def score_until_full(model, *args):
        calls.append(model.training)
        if sum(calls) == 5:
            raise error
        return score(model, *args)

    monkeypatch.setattr(module, "score_answers", score_until_full)


@pytest.fixture
def full(monkeypatch):
    """The GPU's memory ends in the fifth batch; how the history was turned on and off is in the list."""
    history = []
    end_in_the_fifth_batch(monkeypatch, torch.OutOfMemoryError(TEXT))
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda enabled, **how: history.append(enabled))
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", lambda: {"segments": [1]})
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 77 * 2**30)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 78 * 2**30)
    for name in memory.ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    return history


def refused(config):
    with pytest.raises(NsaLabError) as error:
        run(config, progress_bar=False)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def short(tiny):
    return tiny({"training.checkpoint_every": 2, "training.val_every": 100, "training.batch_size": 2})


def test_it_is_said_in_one_line_and_the_run_goes_on_from_its_checkpoint(short, full, tmp_path, monkeypatch):
    said = refused(short)
    for part in (
        "memory of 79.11 GiB does not do: 2.50 GiB were asked for, 77.00 GiB was the peak, 78.00 with",
        "last good checkpoint is",
        "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
        "more GPUs (training.devices, now 1; training.context_parallel",
        "training.activation_checkpointing=true",
        "training.batch_size=1 training.accumulate=2 (the same",
        "shorter clips",
    ):
        assert part in said
    assert said.index("expandable") < said.index("more GPUs") < said.index("activation") < said.index("clips")
    (place,) = (tmp_path / "runs").iterdir()
    assert check_readable(place / "checkpoints" / "last.ckpt") == 4
    assert not list(place.glob("memory*")) and full == [], "no history, no snapshot"
    monkeypatch.undo()
    assert run(short, progress_bar=False).metrics["train/loss"] > 0


def test_a_history_that_was_recorded_is_written_before_the_model_is_moved_away(short, full, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "records", lambda *given: True)
    said = refused(short)
    (file,) = (tmp_path / "runs").glob("*/memory-0.pickle")
    assert pickle.loads(file.read_bytes()) == {"segments": [1]} and f"what held it is in {file}" in said
    assert full == ["state", None], "on and off again"
    monkeypatch.undo()
    run(dataclasses.replace(short, training=dataclasses.replace(short.training, resume=False)), progress_bar=False)
    assert not file.exists()


def test_a_snapshot_that_cannot_be_written_takes_no_advice_away(short, full, monkeypatch):
    def no_room(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(memory, "records", lambda *given: True)
    monkeypatch.setattr(pickle, "dump", no_room)
    said = refused(short)
    assert "what held it could not be written (No space left on device); the last good checkpoint" in said


def test_a_model_that_does_not_fit_is_said_before_the_first_step(short, full, monkeypatch):
    def too_large(*given, **more):
        raise torch.OutOfMemoryError(TEXT)

    monkeypatch.setattr("nsa_lab.training.build.build_module", too_large)
    assert "2.50 GiB were asked for" in (said := refused(short)) and "there is no checkpoint yet" in said


def test_other_errors_write_nothing(short, full, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "records", lambda *given: True)
    end_in_the_fifth_batch(monkeypatch, RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        run(short, progress_bar=False)
    assert not list((tmp_path / "runs").glob("*/memory*")) and full == ["state", None]


def test_advice_leaves_out_what_is_done_already(tiny, monkeypatch):
    monkeypatch.setenv(memory.ALLOCATOR[0], "expandable_segments:True")
    done = {"training.activation_checkpointing": True, "training.batch_size": 1}
    data = {"tasks.needle.enabled": False, "data.annotations": "a.json", "data.videos": "."}
    config = tiny(done | data)
    assert going_on(config, Ranks(0, 8)) == [
        "more GPUs (training.devices, now 8; training.context_parallel shares samples)"
    ]
    assert anew(config) == ["fewer frames (data.max_frames, now 768) or pixels (data.max_pixels, now 50176)"]
    assert going_on(tiny(done | {"training.recompute": "auto"}), ALONE)[0] == "training.recompute=full"


@pytest.mark.parametrize(
    ("setting", "billions", "device", "recorded"),
    [
        ("auto", 7, "cuda", True), ("auto", 0.1, "cuda", False), ("true", 0.1, "cuda", True),
        ("false", 7, "cuda", False), ("true", 7, "cpu", False), ("auto", 7, "cpu", False),
    ],
)  # fmt: skip
def test_history_costs_nothing_where_steps_are_short(setting, billions, device, recorded):
    assert records(setting, int(billions * 1e9), torch.device(device)) is recorded


def test_what_is_recorded_makes_no_other_run(tiny):
    assert config_hash(tiny({"training.memory_history": "true"})) == config_hash(tiny())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_real_gpu_says_so_too(short, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "LARGE", 1)
    score = module.score_answers

    def score_and_ask(model, *args):
        return score(model, *args) if not model.training else torch.empty(1 << 48, device="cuda")

    monkeypatch.setattr(module, "score_answers", score_and_ask)
    said = refused(short)
    (file,) = (tmp_path / "runs").glob("*/memory-0.pickle")
    blocks = [block for segment in pickle.loads(file.read_bytes())["segments"] for block in segment["blocks"]]
    assert any(block.get("frames") for block in blocks) and "1048576.00 GiB were asked for" in said
    assert os.path.getsize(file) < 1 << 28
