"""`attention.text_window`: text rows see the last tokens of their sample alone, in prefill and in decoding."""

import pytest
import torch

from nsa_lab.model import build_model
from nsa_testing import assert_close, model_batch, tiny_config

SHAPES = [(3, (4, 2, 3), 8), (2, (3, 2, 2), 4)]
LONGEST = 3 + 24 + 8
METHODS = ["attention.method=dense", "attention.method=nsa"]


def make(tokenizer, *overrides):
    torch.manual_seed(0)
    return build_model(tiny_config(*overrides), tokenizer).eval()


@torch.no_grad()
def logits(model, batch):
    return model(**batch, use_cache=False).logits


@pytest.mark.parametrize("method", METHODS)
def test_a_window_as_wide_as_the_sample_is_dense(tokenizer, method):
    dense, wide, narrow = (
        make(tokenizer, method, f"attention.text_window={w}") for w in ("null", LONGEST, LONGEST - 1)
    )
    batch = model_batch(dense, SHAPES)
    expected = logits(dense, batch)
    assert_close(logits(wide, batch), expected, 1e-5)
    assert (logits(narrow, batch) - expected)[0, LONGEST - 1].abs().max() > 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_video_rows_of_the_first_layer_do_not_feel_it(tokenizer, method):
    """Text before a video is shorter than its window, so video rows are as they were, in every layer."""
    free, bound = (make(tokenizer, method, f"attention.text_window={w}") for w in ("null", 4))
    batch = model_batch(free, SHAPES)
    one, other = logits(free, batch), logits(bound, batch)
    video = batch["mm_token_type_ids"] == 2
    assert_close(other[video], one[video], 1e-5)
    assert (other[~video] - one[~video]).abs().max() > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_text_reads_its_window_and_nothing_else(tokenizer, method):
    """One layer, so that nothing travels: a text row moves with the last tokens and with none before."""
    window = 6
    model = make(tokenizer, method, "model.num_layers=1", f"attention.text_window={window}")
    batch = model_batch(model, [(3, (4, 2, 3), 12)])
    before, place = logits(model, batch), 36
    for changed in (place - window, place - window + 1, place, place + 1):
        ids = batch["input_ids"].clone()
        ids[0, changed] = 30 if ids[0, changed] != 30 else 31
        moved = (logits(model, batch | {"input_ids": ids}) - before)[0, place].abs().max()
        assert (moved > 0) == (place - window < changed <= place), changed


@pytest.mark.parametrize("method", METHODS)
def test_what_lies_before_the_window_reaches_text_through_video_rows(tokenizer, method):
    """Two layers: a far frame moves a text row that cannot see it, and no row before that frame."""
    model = make(tokenizer, method, "attention.text_window=6")
    batch = model_batch(model, [(3, (6, 2, 3), 4)])
    before = logits(model, batch)
    far = batch["pixel_values_videos"].clone()
    far[4 * 6 : 8 * 6] = torch.randn_like(far[4 * 6 : 8 * 6])
    after = logits(model, batch | {"pixel_values_videos": far})
    frame = 3 + 6
    assert torch.equal(before[0, :frame], after[0, :frame])
    assert (before - after)[0, -4].abs().max() > 0


@pytest.mark.parametrize("method", METHODS)
def test_decoding_sees_the_same_window(tokenizer, method):
    model = make(tokenizer, method, "attention.text_window=6")
    batch = model_batch(model, [(4, (4, 2, 3), 5)])
    del batch["position_ids"]
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    ask = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    ask |= {"output_scores": True, "return_dict_in_generate": True}
    cached, uncached = model.generate(**batch, **ask), model.generate(**batch, **ask, use_cache=False)
    assert torch.equal(cached.sequences, uncached.sequences)
    for one, other in zip(cached.scores, uncached.scores, strict=True):
        assert_close(one, other, 1e-5)
