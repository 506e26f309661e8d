import copy

import pytest
import torch

from nsa_lab.attention.trace import Trace
from nsa_lab.config.sizes import model_size
from nsa_lab.errors import NsaLabError
from nsa_lab.model import (
    VideoNSAForConditionalGeneration,
    build_model,
    gate_metrics,
    load_model,
    measure_budget,
)
from nsa_lab.model.config import config_from_size
from nsa_testing import ODD_SHAPES, assert_close, dense_qwen, model_batch, tiny_config

SHAPES = [(3, (4, 2, 3), 5), (2, (3, 2, 2), 4)]
COVER_ALL = (
    "attention.context=all",
    "attention.gate.kind=fixed",
    "attention.branches.compression.enabled=false",
    "attention.branches.window.enabled=false",
    "attention.branches.selection.block_count=100",
)


def make(tokenizer, *overrides, seed=0):
    torch.manual_seed(seed)
    model = build_model(tiny_config(*overrides), tokenizer).eval()
    for name, parameter in model.named_parameters():
        if ".sparse." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@torch.no_grad()
def logits(model, batch):
    return model(**batch, use_cache=False).logits


def alone(batch):
    """A batch of one sample without row 0, as a plain transformers user would pass it."""
    return batch | {"position_ids": batch["position_ids"][1:]}


@pytest.mark.parametrize(
    "overrides",
    [("attention.method=dense",), COVER_ALL, (*COVER_ALL, "attention.partition.kind=frame")],
    ids=["dense mode", "selection of everything", "frame blocks"],
)
def test_equals_transformers_when_nothing_is_left_out(tokenizer, overrides):
    model = make(tokenizer, *overrides)
    batch = alone(model_batch(model, [(3, (4, 2, 3), 5)]))
    assert_close(logits(model, batch), logits(dense_qwen(model), batch), 1e-5)


def test_sparse_differs_from_dense(tokenizer):
    model = make(tokenizer)
    batch = alone(model_batch(model, [(3, (8, 2, 3), 5)]))
    assert (logits(model, batch) - logits(dense_qwen(model), batch)).abs().max() > 1e-2


@pytest.mark.parametrize("context", ["video", "all"])
def test_packed_samples_do_not_see_each_other(tokenizer, context):
    model = make(tokenizer, f"attention.context={context}")
    packed = logits(model, model_batch(model, ODD_SHAPES))
    for default_cache in (False, True):
        if default_cache:
            with torch.no_grad():
                packed = model(**model_batch(model, ODD_SHAPES)).logits
        start = 0
        batch = model_batch(model, ODD_SHAPES)
        patches = videos = 0
        for before, (t, h, w), after in ODD_SHAPES:
            length = before + t * h * w + after
            one = {
                k: v[..., start : start + length]
                for k, v in batch.items()
                if k in ("input_ids", "position_ids", "mm_token_type_ids")
            }
            if t * h * w:
                one["pixel_values_videos"] = batch["pixel_values_videos"][patches : patches + 4 * t * h * w]
                one["video_grid_thw"] = batch["video_grid_thw"][videos : videos + 1]
                patches, videos = patches + 4 * t * h * w, videos + 1
            assert_close(packed[:, start : start + length], logits(model, one), 1e-5, f"sample at {start}")
            start += length


def test_no_logit_depends_on_a_later_token(tokenizer):
    model = make(tokenizer)
    batch = model_batch(model, [(3, (5, 2, 3), 6)])
    before = logits(model, batch)
    later = copy.deepcopy(batch)
    later["pixel_values_videos"][3 * 6 * 4 :] = torch.randn_like(later["pixel_values_videos"][3 * 6 * 4 :])
    later["input_ids"][0, 34:] = 30
    after = logits(model, later)
    seen = 3 + 3 * 6
    assert torch.equal(before[:, :seen], after[:, :seen])
    assert not torch.equal(before[:, seen:], after[:, seen:])


def generate(model, batch, **kwargs):
    torch.manual_seed(0)
    return model.generate(**batch, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None, **kwargs)


def prompt(model, seed=0, shape=(4, (4, 2, 3), 5)):
    batch = model_batch(model, [shape], seed)
    batch.pop("position_ids")
    return batch | {"attention_mask": torch.ones_like(batch["input_ids"])}


@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "static"}], ids=["dynamic", "static"])
def test_cached_generation_equals_uncached(tokenizer, cache):
    model = make(tokenizer)
    batch = prompt(model)
    cached = generate(model, batch, output_scores=True, return_dict_in_generate=True, **cache)
    uncached = generate(model, batch, use_cache=False, output_scores=True, return_dict_in_generate=True)
    assert torch.equal(cached.sequences, uncached.sequences)
    for one, other in zip(cached.scores, uncached.scores, strict=True):
        assert_close(one, other, 1e-5)


def test_left_padding_does_not_move_blocks(tokenizer):
    model = make(tokenizer)
    long, short = prompt(model, 0, (9, (4, 2, 3), 5)), prompt(model, 1, (4, (4, 2, 3), 5))
    pad = long["input_ids"].shape[1] - short["input_ids"].shape[1]
    padded = {
        k: torch.nn.functional.pad(short[k], (pad, 0)) for k in ("input_ids", "attention_mask", "mm_token_type_ids")
    }
    both = {k: torch.cat([long[k], padded[k]]) for k in padded}
    both |= {k: torch.cat([long[k], short[k]]) for k in ("pixel_values_videos", "video_grid_thw")}
    together = generate(model, both)
    assert torch.equal(together[0, -6:], generate(model, long)[0, -6:])
    assert torch.equal(together[1, -6:], generate(model, short)[0, -6:])


def test_positions_keep_intervals_below_a_second(tokenizer):
    """Equal to transformers' at whole seconds; at 4 fps (0.5 s a patch) time advances in every version."""
    model = make(tokenizer, "data.positions=transformers")
    batch = model_batch(model, [(3, (5, 2, 3), 4)])
    given = {k: batch[k] for k in ("input_ids", "mm_token_type_ids", "video_grid_thw")}
    for seconds in (1.0, 2.0):
        ours, theirs = (
            m.model.get_rope_index(**given, second_per_grid_ts=torch.tensor([seconds]))
            for m in (model, dense_qwen(model))
        )
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
    positions, _ = model.model.get_rope_index(**given, second_per_grid_ts=torch.tensor([0.5]))
    assert positions[0, 0, 3:33:6].tolist() == [3, 4, 5, 6, 7]
    padded = {k: torch.nn.functional.pad(given[k], (2, 0)) for k in ("input_ids", "mm_token_type_ids")}
    mask = torch.nn.functional.pad(torch.ones_like(given["input_ids"]), (2, 0))
    shifted, deltas = model.model.get_rope_index(
        **padded, video_grid_thw=given["video_grid_thw"], second_per_grid_ts=torch.tensor([0.5]), attention_mask=mask
    )
    assert torch.equal(shifted[:, :, 2:], positions) and deltas.item() == int(positions.max()) + 1 - 37


def test_video_after_the_cache_is_refused(tokenizer):
    model = make(tokenizer)
    batch = prompt(model)
    with torch.no_grad():
        cache = model(input_ids=batch["input_ids"][:, :4], use_cache=True).past_key_values
        with pytest.raises(ValueError, match="whole video"):
            model(input_ids=batch["input_ids"][:, 4:], past_key_values=cache)


def test_embeddings_and_mrope_ids_give_the_same(tokenizer):
    model = make(tokenizer)
    batch = model_batch(model, [(3, (4, 2, 3), 5)])
    inner = model.model
    with torch.no_grad():
        by_ids = inner(**batch, use_cache=False)[0]
        features = inner.get_video_features(batch["pixel_values_videos"], batch["video_grid_thw"], return_dict=True)
        embeds = inner.get_input_embeddings()(batch["input_ids"])
        embeds[batch["input_ids"] == model.config.video_token_id] = torch.cat(features.pooler_output)
        by_embeds = inner(
            inputs_embeds=embeds,
            position_ids=batch["position_ids"],
            video_grid_thw=batch["video_grid_thw"],
            use_cache=False,
        )[0]
    assert_close(by_embeds, by_ids, 1e-6)


def test_design_and_weights_round_trip(tokenizer, tmp_path):
    model = make(
        tokenizer,
        "attention.compressor.kind=mlp",
        "attention.layers.1.branches.window.size=3",
        "attention.layers.0.method=dense",
    )
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config.text_config.video_nsa == model.config.text_config.video_nsa
    state, again = model.state_dict(), loaded.state_dict()
    assert state.keys() == again.keys() and all(torch.equal(state[k], again[k]) for k in state)
    batch = model_batch(model, SHAPES)
    assert torch.equal(logits(model, batch), logits(loaded.eval(), batch))
    dense, sparse = (attention.method for attention in loaded.attentions())
    assert sparse.sparse.branches["window"].config.size == 3 and not list(dense.parameters())


def test_loads_plain_qwen_weights_with_fresh_gates(tokenizer, tmp_path, caplog):
    model = make(tokenizer)
    dense_qwen(model).save_pretrained(tmp_path)
    with caplog.at_level("WARNING"):
        loaded = load_model(tmp_path, tiny_config().attention)
    assert "are not in the checkpoint and start fresh" in caplog.text
    state = loaded.state_dict()
    for name, weight in model.state_dict().items():
        if ".sparse." not in name:
            assert torch.equal(state[name], weight), name
    gate = loaded.attentions()[0].method.sparse.gate
    assert (gate.down.weight == 0).all() and (gate.down.bias == 0).all() and 0 < gate.up.weight.std() < 0.1


def edit_weights(folder, edit):
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    weights = load_file(file)
    edit(weights)
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda w: w.pop(next(k for k in w if k.endswith("q_proj.weight"))), "1 missing"),
        (lambda w: w.__setitem__("model.layers.0.self_attn.surprise", torch.zeros(1)), "1 unexpected"),
        (
            lambda w: w.__setitem__(next(k for k in w if k.endswith("o_proj.weight")), torch.zeros(3, 3)),
            "shape",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(tokenizer, tmp_path, edit, said):
    make(tokenizer).save_pretrained(tmp_path)
    edit_weights(tmp_path, edit)
    with pytest.raises(NsaLabError, match=said):
        load_model(tmp_path)


def test_wrong_folders_are_refused(tokenizer, tmp_path):
    with pytest.raises(NsaLabError, match="nowhere does not exist; give the folder"):
        load_model(tmp_path / "nowhere")
    dense_qwen(make(tokenizer)).save_pretrained(tmp_path)
    with pytest.raises(NsaLabError, match="no attention design"):
        load_model(tmp_path)


@pytest.mark.parametrize(("size", "billions"), [("3b", 3.91), ("7b", 8.66), ("32b", 35.17), ("72b", 78.91)])
def test_the_real_sizes_build_on_meta(tokenizer, size, billions):
    config = tiny_config(f"model.size={size}", "model.num_layers=null")
    with torch.device("meta"):
        model = VideoNSAForConditionalGeneration(
            config_from_size(model_size(config.model), tokenizer, config.attention)
        )
    count = sum(p.numel() for p in model.parameters()) / 1e9
    assert count == pytest.approx(billions, abs=0.01), count
    assert (
        model.attentions()[0].method.sparse.gate.down.out_features == model.config.text_config.num_attention_heads * 3
    )


def test_activation_checkpointing_gives_the_same_gradients(tokenizer):
    gradients = []
    for checkpointing in (False, True):
        model = make(tokenizer).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**model_batch(model, SHAPES), use_cache=False).logits.square().mean().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for name, grad in gradients[0].items():
        assert_close(gradients[1][name], grad, 1e-5, name)


def test_every_weight_of_the_design_learns(tokenizer):
    model = make(tokenizer, "attention.compressor.kind=mlp").train()
    model(**model_batch(model, SHAPES), use_cache=False).logits.square().mean().backward()
    for name, parameter in model.named_parameters():
        if ".sparse." in name:
            assert parameter.grad is not None and (parameter.grad != 0).any(), name


def test_gate_means_and_budget(tokenizer):
    model = make(tokenizer, "attention.branches.window.size=2", "attention.branches.selection.block_count=1")
    batch = model_batch(model, [(2, (2, 2, 2), 1)])
    budget = measure_budget(model, batch)
    trace = Trace("gate_means")
    with torch.no_grad():
        model(**batch, use_cache=False, trace=trace)
    means = gate_metrics(trace)
    branches = ("compression", "selection", "window")
    assert set(means) == {f"gate/{place}{b}" for place in ("layer00/", "layer01/", "") for b in branches}
    assert means["gate/window"] == pytest.approx((means["gate/layer00/window"] + means["gate/layer01/window"]) / 2)
    assert all(0 < mean < 1 for mean in means.values())
    # 8 tokens, blocks of 4, own block only: 1+2+3+4 twice; window of 2: 1, then 2; compressed: 0 0 0 1 1 1 1 2.
    assert budget["budget/keys_per_query"] == pytest.approx((20 + 15) / 8)
    assert budget["budget/keys_per_query_with_compressed"] == pytest.approx((20 + 15 + 6) / 8)
    assert budget["budget/ratio_to_dense"] == pytest.approx(35 / 36)
    assert budget["budget/paper_ratio"] == 1, "2 * 6 / 7, where the formula has left its range"
    dense = measure_budget(make(tokenizer, "attention.method=dense"), batch)
    assert dense["budget/ratio_to_dense"] == 1 and dense["budget/keys_per_query"] == 4.5


def test_vision_windows_side_by_side_equal_one_by_one(tokenizer):
    """Equal windows go through one call, ragged ones (a frame of 10 x 6 patches has 8- and 2-wide windows) do not."""
    model = make(tokenizer)
    qwen = dense_qwen(model)
    for grid in ([3, 4, 6], [2, 10, 6], [1, 2, 2]):
        pixels = torch.randn(grid[0] * grid[1] * grid[2], 1176)
        features = [
            torch.cat(m.model.get_video_features(pixels, torch.tensor([grid]), return_dict=True).pooler_output)
            for m in (model, qwen)
        ]
        assert_close(features[0], features[1], 1e-6, str(grid))


def test_every_weight_is_initialised_like_qwens(tokenizer):
    config = tiny_config()
    fresh = build_model(config, tokenizer)
    stored = {name: p for name, p in fresh.named_parameters() if p.ndim == 2 and ".sparse." not in name}
    for name, weight in stored.items():
        assert weight.std().item() == pytest.approx(fresh.config.text_config.initializer_range, rel=0.15), name
