"""What all reducers of the registry hold to: rows padded are rows alone, answers written and scored agree, refusals."""

import pytest
import torch
from torch.nn import functional as F

from nsa_lab import load_model
from nsa_lab.attention.methods import METHODS
from nsa_lab.baselines import REDUCERS
from nsa_lab.config import load_config
from nsa_lab.errors import ConfigError
from nsa_lab.model import build_model, measure_budget
from nsa_reducers import packed, sample_of
from nsa_testing import assert_close, stored_run, tiny_config

NAMES = [name for name in REDUCERS if name != "none"]
every_reducer = pytest.mark.parametrize("name", NAMES)


def make_model(tokenizer, name, *overrides):
    torch.manual_seed(0)
    own = ["model.num_layers=4", "attention.method=dense", f"attention.reducer.kind={name}", *overrides]
    return build_model(tiny_config(*own), tokenizer).eval().double()


def prompt(*samples):
    """Rows of unequal length, padded on the left."""
    longest = max(len(sample.ids) for sample in samples)
    missing = [longest - len(sample.ids) for sample in samples]
    positions = [F.pad(s.positions, (n, 0)) for s, n in zip(samples, missing, strict=True)]
    return {
        "input_ids": torch.stack([F.pad(s.ids, (n, 0), value=1) for s, n in zip(samples, missing, strict=True)]),
        "attention_mask": (torch.arange(longest) >= torch.tensor(missing)[:, None]).long(),
        "position_ids": torch.stack(positions, 1),
        "pixel_values_videos": torch.cat([video for sample in samples for video in sample.pixels]),
        "video_grid_thw": torch.cat([sample.patches() for sample in samples]),
    }


def decoded(model, batch, new):
    """Logits of the last prompt token, of one token after it, and of two more at once."""
    out, mask = model(**batch, use_cache=True), batch["attention_mask"]
    found, place = [out.logits[:, -1:]], batch["position_ids"][:, :, -1:]
    for begin, end in ((0, 1), (1, 3)):
        tokens, mask = new[:, begin:end], F.pad(mask, (0, end - begin), value=1)
        ids = place + torch.arange(begin + 1, end + 1)
        given = {"attention_mask": mask, "position_ids": ids, "past_key_values": out.past_key_values}
        out = model(input_ids=tokens, use_cache=True, **given)
        found.append(out.logits)
    return torch.cat(found, 1)


@torch.no_grad()
@every_reducer
def test_rows_of_unequal_length_and_what_follows_are_those_of_each_alone(tokenizer, name):
    model, dense = make_model(tokenizer, name), make_model(tokenizer, "none")
    shapes = ([2, (3, 2, 2), 6], [4, (2, 3, 3), 2, (2, 2, 2), 9])
    samples = [sample_of(model, parts, seed) for seed, parts in enumerate(shapes)]
    new = torch.tensor([[30, 31, 32], [40, 41, 42]])
    together = decoded(model, prompt(*samples), new)
    for number, sample in enumerate(samples):
        alone = decoded(model, prompt(sample), new[number : number + 1])
        assert_close(together[number], alone[0], 1e-10)
        assert (alone - decoded(dense, prompt(sample), new[number : number + 1])).abs().max() > 1e-4


@torch.no_grad()
@every_reducer
def test_a_stored_checkpoint_answers_as_it_is_scored(tokenizer, tmp_path, name):
    """A dense model's weights, read again with a reducer: cached, written anew at each token, and teacher-forced."""
    config = tiny_config("model.num_layers=4", "attention.method=dense")
    run = stored_run(tmp_path / "run", config, make_model(tokenizer, "none"))
    model = load_model(run, [f"attention.reducer.kind={name}"]).double()
    sample = sample_of(model, [3, (4, 3, 3), 6], 1)
    batch = {key: value for key, value in prompt(sample).items() if key != "attention_mask"}
    batch["position_ids"] = torch.cat([torch.arange(len(sample.ids))[None, None], batch["position_ids"]])
    limit = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    limit["suppress_tokens"] = [model.config.video_token_id]
    cached, anew = (model.generate(**batch, **limit, use_cache=use)[0] for use in (True, False))
    assert torch.equal(cached, anew)
    length, new = len(sample.ids), torch.arange(1, 6)
    rows = torch.arange(length - 1, length + 4)
    later = batch["position_ids"].amax((1, 2))[:, None] + new
    later[1:] = later[1:].amax(0)
    positions = torch.cat([batch["position_ids"], later[:, None]], 2)
    whole = batch | {"input_ids": cached[None], "position_ids": positions}
    scored = model(**whole, use_cache=False, logits_to_keep=rows, targets=cached[length:])
    assert scored.hits.all()


@torch.no_grad()
@every_reducer
@pytest.mark.parametrize("grid", [None, [[1, 4, 4]]], ids=["text", "an image"])
def test_without_a_video_nothing_is_dropped(tokenizer, name, grid):
    model, plain = make_model(tokenizer, name), make_model(tokenizer, "none")
    own = [model.config.image_token_id] * 4 if grid else [33, 34]
    batch = {"input_ids": torch.tensor([[30, model.config.vision_start_token_id, *own, 31, 32]])}
    if grid:
        pixels = torch.randn(16, 1176, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        batch |= {"pixel_values": pixels, "image_grid_thw": torch.tensor(grid)}
    found, expected = (m(**batch, use_cache=False).logits for m in (model, plain))
    assert_close(found, expected, 1e-12)


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
@every_reducer
@pytest.mark.singly
def test_every_method_attends_to_what_is_left(tokenizer, name, method):
    """Kept rows alone, with their positions, are what the layers after the last cut see; the budget falls."""
    model = make_model(tokenizer, name, f"attention.method={method}")
    samples = [sample_of(model, parts, n) for n, parts in enumerate(([3, (4, 2, 3), 5], [2, (2, 3, 3), 7]))]
    logits = model(**packed(samples), use_cache=False).logits[0]
    alone = model(**packed(samples[1:]), use_cache=False).logits[0]
    assert logits.isfinite().all()
    assert_close(logits[-len(alone) :], alone, 1e-10)
    plain = make_model(tokenizer, "none", f"attention.method={method}")
    own, all_tokens = (measure_budget(m, packed(samples)) for m in (model, plain))
    assert own["budget/keys_per_query"] < all_tokens["budget/keys_per_query"]
    assert own["budget/flops_per_token"] < all_tokens["budget/flops_per_token"]
    assert 0 < own["budget/tokens_kept"] < 1 and "budget/tokens_kept" not in all_tokens
    reducer = model.model.language_model.reducer
    foretold = [reducer.left(reducer.config, 4, *grid) for grid in ((4, 6), (2, 9))]
    assert own["budget/tokens_kept"] == pytest.approx(sum(map(sum, foretold)) / 4 / (24 + 18))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("{kind: fastv, fastv: {drop: 1.0}}", r"reducer\.fastv\.drop: 1\.0 is no share from 0 to below 1"),
        ("{kind: fastv, fastv: {layer: 0}}", r"reducer\.fastv\.layer: 0 has no layer before it"),
        ("{kind: fastv, fastv: {layer: 4}}", r"reducer\.fastv\.layer: 4: the model has layers 0 to 3; use 1 to 3"),
        ("{kind: visionzip, visionzip: {keep: 0.0}}", r"reducer\.visionzip\.keep: 0\.0 is no share above 0 to 1"),
        ("{kind: visionzip, visionzip: {contextual: -0.1}}", r"contextual: -0\.1 is no share from 0 to 1"),
        ("{kind: vscan, vscan: {late: 1.5}}", r"reducer\.vscan\.late: 1\.5 is no share above 0 to 1"),
        ("{kind: vscan, vscan: {layer: 9}}", r"reducer\.vscan\.layer: 9: the model has layers 0 to 3; use 1 to 3"),
        ("{kind: fast}", r"did you mean 'fastv'"),
    ],
)
def test_settings_that_no_model_can_have_are_refused(override, said):
    with pytest.raises(ConfigError, match=said):
        load_config(None, ["tasks.needle.enabled=true", f"attention.reducer={override}"])


@every_reducer
def test_what_it_cannot_do_is_refused(name):
    base = ["tasks.needle.enabled=true", f"attention.reducer.kind={name}"]
    with pytest.raises(ConfigError, match=f"2 processes cannot share a sample under {name}; set it to 1"):
        load_config(None, [*base, "training={context_parallel: 2, devices: 2}"])
    with pytest.raises(ConfigError, match=r"is one for the whole model; set attention\.reducer"):
        load_config(None, ["tasks.needle.enabled=true", f"attention.layers.1.reducer.kind={name}"])
