"""A-shape and Tri-Shape: each against dense attention under a mask written down token by token, and their decoding."""

import pytest
import torch

from nsa_baselines import HEADS, LAYOUTS, assert_follows, layout_of, make_method
from nsa_lab.attention import groups
from nsa_lab.config import load_config
from nsa_lab.config.rules import notices
from nsa_lab.errors import ConfigError
from nsa_lab.model import build_model, measure_budget
from nsa_testing import assert_close, model_batch, tiny_config

SIZES = [(1, 1, 0), (2, 5, 0), (3, 7, 4), (100, 3, 2), (0, 4, 100)]


def shape_mask(initial, local, last):
    def mask_of(q, k):
        count = len(q)
        seen = [
            [j <= i and (j < initial or i - j < local or i >= count - last) for j in range(count)] for i in range(count)
        ]
        return torch.tensor(seen).reshape(1, count, count).expand(q.shape[1], -1, -1)

    return mask_of


def overrides(initial, local, last):
    if last == 0:
        return ["method=a_shape", f"a_shape={{initial: {initial}, local: {local}}}"]
    return ["method=tri_shape", f"tri_shape={{initial: {initial}, local: {local}, last: {last}}}"]


@pytest.mark.pairwise
@pytest.mark.parametrize("pieces", ["one piece", "many pieces"])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_dense_attention_under_the_published_mask(layout, sizes, heads, pieces, monkeypatch):
    if pieces == "many pieces":
        monkeypatch.setattr(groups, "PIECE_BYTES", 2000)
        monkeypatch.setattr(groups, "MIN_ROWS", 5)
    method = make_method(heads, *overrides(*sizes))
    assert_follows(method, layout_of(LAYOUTS[layout]), heads, shape_mask(*sizes))


def test_a_text_window_narrows_the_text_rows_alone():
    layout = layout_of(LAYOUTS["two videos"])
    spans = iter([(0, 67), (67, 78)])

    def mask_of(q, k):
        begin, end = next(spans)
        own, text = torch.arange(end - begin), ~layout.is_video[begin:end]
        far = own[:, None] - own >= 3
        return shape_mask(2, 6, 4)(q, k) & ~(text[:, None] & far)

    assert_follows(make_method(HEADS[0], *overrides(2, 6, 4), "text_window=3"), layout, HEADS[0], mask_of)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["method=a_shape", "a_shape.local=0"], r"attention\.a_shape\.local: 0 leaves a row without itself"),
        (["method=a_shape", "a_shape.initial=-1"], r"attention\.a_shape\.initial: -1 is negative"),
        (["method=tri_shape", "tri_shape.last=-2"], r"attention\.tri_shape\.last: -2 is negative"),
        (["method=tri_shape", "backend=reference"], r"attention\.backend: reference is not read by method=tri_shape"),
    ],
)
def test_sizes_that_cannot_be_are_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        make_method(HEADS[0], *given)


def test_a_window_that_holds_the_clip_is_said():
    said = notices(load_config(None, ["tasks.needle.enabled=true", "attention.method=tri_shape"]))
    assert any("attention.tri_shape.local=3968 holds all" in notice for notice in said)


SHAPES = [(3, (4, 2, 3), 5), (2, (3, 2, 2), 4)]
NARROW = ["attention.method=tri_shape", "attention.tri_shape={initial: 1, local: 4, last: 1}"]


def make_model(tokenizer, *given):
    torch.manual_seed(0)
    return build_model(tiny_config(*given), tokenizer).eval().double()


@torch.no_grad()
def test_a_decoded_token_reads_the_whole_cache(tokenizer):
    """Two decoded rows after A-shape are the last two rows of Tri-Shape over everything."""
    at_once = make_model(tokenizer, *NARROW[:1], "attention.tri_shape={initial: 1, local: 4, last: 2}")
    in_parts = make_model(tokenizer, "attention.method=a_shape", "attention.a_shape={initial: 1, local: 4}")
    in_parts.load_state_dict(at_once.state_dict())
    batch = model_batch(at_once, SHAPES[:1])
    batch["pixel_values_videos"] = batch["pixel_values_videos"].double()
    expected = at_once(**batch, use_cache=False).logits[:, -2:]
    prompt = batch | {
        "input_ids": batch["input_ids"][:, :-2],
        "mm_token_type_ids": batch["mm_token_type_ids"][:, :-2],
        "position_ids": batch["position_ids"][..., :-2],
    }
    cache = in_parts(**prompt, use_cache=True).past_key_values
    found = [
        in_parts(
            input_ids=batch["input_ids"][:, n : n + 1 or None],
            position_ids=batch["position_ids"][..., n : n + 1 or None],
            past_key_values=cache,
            use_cache=True,
        ).logits
        for n in (-2, -1)
    ]
    assert_close(torch.cat(found, 1), expected, 1e-10)


def test_its_budget_is_a_count_of_the_window(tokenizer):
    narrow = make_model(tokenizer, *NARROW)
    batch = model_batch(narrow, SHAPES)
    batch["pixel_values_videos"] = batch["pixel_values_videos"].double()
    budget = measure_budget(narrow, batch)
    # Of their videos' 24 and 12 tokens the last four; the first token of a sample is text.
    counted = [min(place, 4) for tokens in (24, 12) for place in range(1, tokens + 1)]
    assert budget["budget/keys_per_query"] == pytest.approx(sum(counted) / len(counted))
