"""What all training-free methods hold to: rows padded and packed are rows alone, precision, and refusals."""

import pytest
import torch
from torch.nn import functional as F

from nsa_baselines import HEADS, LAYOUTS, layout_of, make_method, peaked_heads, prefill
from nsa_lab.attention.methods import METHODS
from nsa_lab.attention.methods.training_free import TrainingFree
from nsa_lab.config import load_config
from nsa_lab.errors import ConfigError
from nsa_lab.model import build_model, measure_budget
from nsa_testing import assert_close, model_batch, tiny_config

SPARSE = {
    "a_shape": ["a_shape={initial: 1, local: 4}"],
    "tri_shape": ["tri_shape={initial: 1, local: 4, last: 2}"],
    "x_attention": ["x_attention={block_size: 4, stride: 2, threshold: 0.3}"],
    "flex_prefill": ["flex_prefill={block_size: 4, gamma: 0.2}"],
    "minference": ["minference={vertical: 2, slash: 2, last: 4, first: 1, near: 1, block_size: 2}"],
}
"""Settings under which some twenty tokens are not read densely."""

every_method = pytest.mark.parametrize("name", [n for n, kind in METHODS.items() if issubclass(kind, TrainingFree)])


def make_model(tokenizer, name, settings=None):
    """Sparse without `settings`."""
    torch.manual_seed(0)
    own = SPARSE.get(name, []) if settings is None else settings
    given = [f"attention.{override}" for override in (f"method={name}", *own)]
    return build_model(tiny_config(*given), tokenizer).eval().double()


def row_of(model, shape, seed):
    batch = model_batch(model, [shape], seed)
    batch["input_ids"][0, shape[0] - 1] = model.config.vision_start_token_id
    return {
        "input_ids": batch["input_ids"],
        "attention_mask": torch.ones_like(batch["input_ids"]),
        "mm_token_type_ids": batch["mm_token_type_ids"],
        "pixel_values_videos": batch["pixel_values_videos"].double(),
        "video_grid_thw": batch["video_grid_thw"],
    }


def padded(rows):
    """Rows of unequal length, padded on the left."""
    longest = max(row["input_ids"].shape[1] for row in rows)
    return {
        name: torch.cat(
            [row[name] if "vid" in name else F.pad(row[name], (longest - row[name].shape[1], 0)) for row in rows]
        )
        for name in rows[0]
    }


def prompt_and_steps(model, batch, new):
    """Logits of the last prompt token, of one token after it, and of two more at once."""
    out = model(**batch, use_cache=True)
    found, mask = [out.logits[:, -1:]], batch["attention_mask"]
    for tokens in (new[:, :1], new[:, 1:]):
        mask = F.pad(mask, (0, tokens.shape[1]), value=1)
        out = model(input_ids=tokens, attention_mask=mask, past_key_values=out.past_key_values, use_cache=True)
        found.append(out.logits)
    return torch.cat(found, 1)


@torch.no_grad()
@every_method
def test_padded_rows_and_what_is_decoded_after_them_are_those_of_each_row_alone(tokenizer, name):
    model, dense = make_model(tokenizer, name), make_model(tokenizer, "dense")
    rows = [row_of(model, (2, (3, 2, 2), 6), 1), row_of(model, (4, (4, 2, 3), 9), 2)]
    new = torch.tensor([[30, 31, 32], [40, 41, 42]])
    together = prompt_and_steps(model, padded(rows), new)
    for number, row in enumerate(rows):
        alone = prompt_and_steps(model, row, new[number : number + 1])
        assert_close(together[number], alone[0], 1e-10)
        assert (alone - prompt_and_steps(dense, row, new[number : number + 1])).abs().max() > 1e-4


@every_method
def test_where_nothing_is_left_out_rows_and_keys_are_those_of_dense_attention(tokenizer, name):
    model, dense = make_model(tokenizer, name, []), make_model(tokenizer, "dense")
    batch = model_batch(model, [(3, (4, 2, 3), 5), (2, (3, 2, 2), 4)])
    batch["pixel_values_videos"] = batch["pixel_values_videos"].double()
    with torch.no_grad():
        assert_close(model(**batch, use_cache=False).logits, dense(**batch, use_cache=False).logits, 1e-12)
    keys = ("budget/keys_per_query", "budget/ratio_to_dense")
    found, expected = (measure_budget(which, batch) for which in (model, dense))
    assert {key: found[key] for key in keys} == {key: expected[key] for key in keys}
    assert measure_budget(make_model(tokenizer, name), batch)[keys[1]] < 0.9


@every_method
def test_a_choice_in_bfloat16_is_that_of_the_same_values_in_float32(name):
    method, layout = make_method(HEADS[1], f"method={name}", *SPARSE[name]), layout_of(LAYOUTS["two videos"])
    low = [x.bfloat16() for x in peaked_heads(len(layout.rows), HEADS[1])]
    found, cost = prefill(method, layout, *low)
    expected, same = prefill(method, layout, *(x.float() for x in low))
    with torch.autocast("cpu", torch.bfloat16):
        mixed, again = prefill(method, layout, *(x.float() for x in low))
    assert found.dtype == torch.bfloat16 and cost == same == again
    assert_close(found, expected, 1e-2)
    assert_close(mixed, expected, 1e-2)


@every_method
def test_what_it_does_not_read_is_refused(name):
    for backend in ("triton", "reference"):
        with pytest.raises(ConfigError, match=rf"attention\.backend: {backend} is not read by method={name}"):
            make_method(HEADS[0], f"method={name}", f"backend={backend}")
    with pytest.raises(ConfigError, match=f"2 processes cannot share a sample under {name}; set it to 1"):
        load_config(
            None,
            ["tasks.needle.enabled=true", f"attention.method={name}", "training={context_parallel: 2, devices: 2}"],
        )
