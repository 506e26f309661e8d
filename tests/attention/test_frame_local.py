"""The knock-out method: its rows against the plain reference on frames as samples, and what can reach them."""

import dataclasses

import pytest
import torch

from nsa_lab.attention.backends.reference import Reference
from nsa_lab.attention.methods.frame_local import attend_within_frames
from nsa_lab.model import build_model, measure_budget
from nsa_lab.partition import sparse_context
from nsa_lab.partition.segments import place_in_run
from nsa_testing import ODD_SHAPES, assert_close, model_batch, random_heads, tiny_config, token_layout


def frames_as_samples(context):
    counts = torch.bincount(context.frame)
    cumulative = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return dataclasses.replace(context, cu_seqlens=cumulative, query_cu_seqlens=cumulative)


@pytest.mark.parametrize("heads", [(4, 2, 16), (7, 1, 8)])
@pytest.mark.parametrize("dropped", [0, 3])
def test_rows_are_dense_attention_of_each_frame_alone(heads, dropped):
    """Two samples and an empty one packed, frames of several sizes; with `dropped`, as a token reducer leaves them."""
    layout = token_layout(ODD_SHAPES)
    if dropped:
        index = torch.arange(len(layout.rows))
        video = layout.video_index[torch.tensor([1, 2, 30])]
        layout = layout.keep(index[~torch.isin(index, video)])
    context = sparse_context(layout, "video")
    count = len(context.frame)
    plain, quick = (random_heads(count, count, heads, torch.float64) for _ in range(2))
    expected = Reference().dense(*plain.all, frames_as_samples(context), scale=0.3)
    found = attend_within_frames(*quick.all, context.frame, place_in_run(context.frame), 0.3)
    assert_close(found, expected, 1e-12)
    weights = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    for one, other in zip(quick.all, plain.all, strict=True):
        assert_close(one.grad, other.grad, 1e-12)


def test_no_video_is_no_rows():
    q, k, v = random_heads(0, 0, (4, 2, 16), torch.float64).all
    assert attend_within_frames(q, k, v, torch.empty(0).long(), torch.empty(0).long(), 1.0).shape == (0, 4, 16)


def knocked_out(tokenizer, *overrides):
    torch.manual_seed(0)
    return build_model(tiny_config("attention.method=frame_local", *overrides), tokenizer).eval().double()


def test_nothing_travels_between_frames_and_under_a_text_window_nothing_reaches_the_text(tokenizer):
    free, bound = (knocked_out(tokenizer, f"attention.text_window={w}", "model.num_layers=3") for w in ("null", 6))
    batch = model_batch(free, [(3, (4, 2, 3), 8), (2, (3, 2, 2), 4)])
    batch["pixel_values_videos"] = batch["pixel_values_videos"].double()
    changed = batch["pixel_values_videos"].clone()
    changed[24:48] += 1.0  # the second frame of the first video: tokens 9 to 14
    for model, reached in ((free, True), (bound, False)):
        with torch.no_grad():
            before, after = (
                model(**batch | {"pixel_values_videos": pixels}, use_cache=False).logits[0]
                for pixels in (batch["pixel_values_videos"], changed)
            )
        moved = (before != after).any(-1)
        assert moved[9:15].all() and not moved[:9].any() and not moved[15:27].any() and not moved[35:].any()
        assert bool(moved[27:35].any()) == reached


def test_its_cost_is_the_mean_place_in_a_frame(tokenizer):
    model = knocked_out(tokenizer)
    batch = model_batch(model, [(3, (4, 2, 3), 8), (2, (3, 2, 2), 4)])
    batch["pixel_values_videos"] = batch["pixel_values_videos"].double()
    keys = (4 * sum(range(1, 7)) + 3 * sum(range(1, 5))) / (24 + 12)
    assert measure_budget(model, batch)["budget/keys_per_query"] == pytest.approx(keys)
