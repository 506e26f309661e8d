"""Tokens dropped on the way: throw-away reducers against runs on indices made by hand; decoding after every reducer."""

import pytest
import torch
from transformers import DynamicCache

from nsa_lab.attention.trace import Trace
from nsa_lab.baselines import REDUCERS, Reducer
from nsa_lab.model import build_model
from nsa_lab.model.cache import VideoCache
from nsa_lab.model.plan import AttentionPlan
from nsa_lab.partition import PARTITIONERS
from nsa_testing import assert_close, model_batch, tiny_config, tiny_tokenizer

FRAMES, HEIGHT, WIDTH = 8, 2, 3
SHAPES = [(3, (FRAMES, HEIGHT, WIDTH), 5), (2, (4, 2, 2), 4), (4, (0, 0, 0), 3)]


class EverySecond(Reducer):
    """Drops every second video token after layer 1."""

    def after_layer(self, layer, x, plan):
        if layer != 1:
            return x, plan
        index = every_second(plan.layout)
        return x[index], plan.keep(index)


class FirstHalf(Reducer):
    """Keeps the first half of all video tokens, counted over each video, after the vision tower."""

    def after_vision(self, x, plan):
        index = first_half(plan.layout)
        return x[index], plan.keep(index)


EVERY = [EverySecond, FirstHalf, *REDUCERS.values()]


def every_second(layout):
    place = layout.is_video.cumsum(0)
    return (~layout.is_video | (place % 2 == 0)).nonzero().flatten()


def first_half(layout):
    keep = [~layout.is_video]
    for video in range(len(layout.grids)):
        own = layout.video == video
        keep.append(own & (own.cumsum(0) <= own.sum() // 2))
    return torch.stack(keep).any(0).nonzero().flatten()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def make(tokenizer, reducer=Reducer, *overrides):
    torch.manual_seed(0)
    model = build_model(tiny_config("model.num_layers=4", *overrides), tokenizer).eval().double()
    for name, parameter in model.named_parameters():
        if ".sparse." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.model.language_model.reducer = reducer(reducer.Config(), 64)
    return model


def batch_of(model, shapes=SHAPES):
    batch = model_batch(model, shapes)
    return batch | {"pixel_values_videos": batch["pixel_values_videos"].double()}


@torch.no_grad()
def by_hand(model, batch, steps):
    """Logits at the kept tokens: layers called one after the other; `steps` maps the layer before which tokens are
    dropped to the function that says which of the layout stay."""
    decoder, trace = model.model.language_model, Trace()
    embeds = model.get_input_embeddings()(batch["input_ids"])
    is_video = batch["input_ids"] == model.config.video_token_id
    features = model.model.get_video_features(batch["pixel_values_videos"], batch["video_grid_thw"], return_dict=True)
    embeds[is_video] = torch.cat(features.pooler_output)
    layout = model.model._layout(batch["input_ids"], None, None, batch["position_ids"], batch["video_grid_thw"])
    x, first = embeds[0][layout.rows], embeds[0][layout.rows]
    cos, sin = (value[0] for value in decoder.rotary_emb(x, batch["position_ids"][1:]))

    def plan_from(number):
        plan = AttentionPlan(layout, embeds.shape[:2], trace, number)
        plan.begin(decoder.partitions, first, (cos, sin))
        return plan

    plan = plan_from(0)
    for number, layer in enumerate(decoder.layers):
        if number in steps:
            index = steps[number](layout)
            layout, x, first, cos, sin = layout.keep(index), x[index], first[index], cos[index], sin[index]
            plan = plan_from(number)
        x = layer(x, position_embeddings=(cos, sin), plan=plan)
    return model.lm_head(decoder.norm(x)), layout.rows


@pytest.mark.singly
@pytest.mark.parametrize("partition", PARTITIONERS)
@pytest.mark.parametrize(("reducer", "steps"), [(EverySecond, {2: every_second}), (FirstHalf, {0: first_half})])
def test_logits_equal_a_run_on_indices_made_by_hand(tokenizer, reducer, steps, partition):
    model = make(tokenizer, reducer, f"attention.partition.kind={partition}", "attention.layers.3.method=dense")
    batch = batch_of(model)
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits[0]
    expected, rows = by_hand(model, batch, steps)
    assert len(rows) < len(logits)
    assert_close(logits[rows], expected, 1e-12)
    dropped = torch.ones(len(logits), dtype=torch.bool)
    dropped[rows] = False
    assert not logits[dropped].any(), "a dropped token has no row"
    whole = make(tokenizer, Reducer, f"attention.partition.kind={partition}", "attention.layers.3.method=dense")
    assert not torch.allclose(whole(**batch, use_cache=False).logits[0][rows], expected)


def test_half_the_frames_kept_are_a_video_of_half_the_frames(tokenizer):
    """The first half of a video is a video: the reducer equals a shorter input, text positions apart."""
    model, plain = make(tokenizer, FirstHalf), make(tokenizer)
    batch = batch_of(model, [(3, (FRAMES, HEIGHT, WIDTH), 5)])
    keep = torch.tensor([*range(3 + FRAMES // 2 * HEIGHT * WIDTH), *range(3 + FRAMES * HEIGHT * WIDTH, 8 + FRAMES * 6)])
    with torch.no_grad():
        embeds = plain.get_input_embeddings()(batch["input_ids"])
        features = plain.model.get_video_features(batch["pixel_values_videos"], batch["video_grid_thw"])
        embeds[batch["input_ids"] == plain.config.video_token_id] = torch.cat(features.pooler_output)
        expected = plain(
            inputs_embeds=embeds[:, keep],
            position_ids=batch["position_ids"][1:, :, keep],
            video_grid_thw=torch.tensor([[FRAMES // 2, 2 * HEIGHT, 2 * WIDTH]]),
            use_cache=False,
        ).logits[0]
        found = model(**batch, use_cache=False).logits[0][keep]
    assert_close(found, expected, 1e-12)


SHORT = ((2, (3, 2, 2), 3), (1, (2, 2, 2), 4))


def padded(model, lengths=((2, (3, 2, 2), 3), (1, (5, 2, 2), 4))):
    """Rows of unequal length, padded on the left; the second is longer."""
    rows = [batch_of(model, [shape]) for shape in lengths]
    longest = max(row["input_ids"].shape[1] for row in rows)
    ids, mask = [], []
    for row, (before, _, _) in zip(rows, lengths, strict=True):
        row["input_ids"][0, before - 1] = model.config.vision_start_token_id
        missing = longest - row["input_ids"].shape[1]
        ids.append(torch.nn.functional.pad(row["input_ids"], (missing, 0), value=1))
        mask.append(torch.nn.functional.pad(torch.ones_like(row["input_ids"]), (missing, 0)))
    input_ids = torch.cat(ids)
    return {
        "input_ids": input_ids,
        "attention_mask": torch.cat(mask),
        "mm_token_type_ids": (input_ids == model.config.video_token_id).long() * 2,
        "pixel_values_videos": torch.cat([row["pixel_values_videos"] for row in rows]),
        "video_grid_thw": torch.cat([row["video_grid_thw"] for row in rows]),
    }


@pytest.mark.parametrize("window", ["null", "5"])
@pytest.mark.parametrize("reducer", EVERY)
def test_decoding_after_a_cache_of_unequal_layers_equals_one_forward(tokenizer, reducer, window):
    """One new token, then three at once, two rows of unequal length."""
    model = make(tokenizer, reducer, f"attention.text_window={window}")
    batch = padded(model)
    new = torch.tensor([[30, 31, 32, 33], [40, 41, 42, 43]])
    whole = {
        **batch,
        "input_ids": torch.cat([batch["input_ids"], new], 1),
        "attention_mask": torch.nn.functional.pad(batch["attention_mask"], (0, 4), value=1),
        "mm_token_type_ids": torch.nn.functional.pad(batch["mm_token_type_ids"], (0, 4)),
        "answering": torch.arange(batch["input_ids"].shape[1]).expand(2, -1) >= batch["input_ids"].shape[1] - 1,
    }
    grids = {"video_grid_thw": batch["video_grid_thw"], "attention_mask": whole["attention_mask"]}
    positions, _ = model.model.get_rope_index(whole["input_ids"], whole["mm_token_type_ids"], **grids)
    prompt = batch["input_ids"].shape[1]
    with torch.no_grad():
        expected = model(**whole, position_ids=positions, use_cache=False).logits[:, -5:]
        out = model(**batch, position_ids=positions[..., :prompt], use_cache=True)
        cache, found = out.past_key_values, [out.logits[:, -1:]]
        for begin, end in ((0, 1), (1, 4)):
            now = prompt + end
            out = model(
                input_ids=new[:, begin:end],
                attention_mask=whole["attention_mask"][:, :now],
                position_ids=positions[..., prompt + begin : now],
                past_key_values=cache,
                use_cache=True,
            )
            found.append(out.logits)
    assert isinstance(cache, VideoCache)
    lengths = {cache.layers[layer].keys.shape[2] for layer in range(4)}
    assert len(lengths) == (2 if "after_layer" in vars(reducer) and reducer is not Reducer else 1)
    assert cache.get_seq_length() == whole["input_ids"].shape[1]
    assert_close(torch.cat(found, 1), expected, 1e-10)


@pytest.mark.parametrize("reducer", EVERY)
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_generation_with_and_without_a_cache(tokenizer, reducer, options):
    model = make(tokenizer, reducer)
    batch, limit = padded(model, SHORT), {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, **options}
    limit["suppress_tokens"] = [model.config.video_token_id]  # random weights may choose it, and it is no text
    cached, plain = (model.generate(**batch, **limit, use_cache=use) for use in (True, False))
    assert torch.equal(cached, plain)


def test_a_cache_of_transformers_is_refused_where_tokens_are_dropped(tokenizer):
    model = make(tokenizer, EverySecond)
    with pytest.raises(ValueError, match=r"pass nsa_lab\.model\.cache\.VideoCache"):
        model(**padded(model), past_key_values=DynamicCache(), use_cache=True)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda n: torch.arange(n - 1), "drops a text token"),
        (lambda n: torch.arange(n).flip(0), "ascending order"),
        (lambda n: torch.arange(n + 1), "from 0 to"),
        (lambda n: torch.arange(n)[None], "packed places"),
    ],
)
def test_what_keep_refuses(tokenizer, wrong, said):
    class Wrong(Reducer):
        def after_vision(self, x, plan):
            return x, plan.keep(wrong(len(x)))

    model = make(tokenizer, Wrong)
    with pytest.raises(ValueError, match=said):
        model(**batch_of(model), use_cache=False)


@pytest.mark.singly
@pytest.mark.parametrize("partition", ["uniform", "router", "tile"])
@pytest.mark.parametrize("reducer", EVERY)
def test_activation_checkpointing_gives_the_same_gradients(tokenizer, reducer, partition):
    found = []
    for checkpointing in (False, True):
        model = make(tokenizer, reducer, f"attention.partition.kind={partition}").train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        trace = Trace()
        logits = model(**batch_of(model), use_cache=False, trace=trace).logits
        extra = trace.loss()
        (logits.square().mean() + (0 if extra is None else extra)).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, grad in found[0].items():
        assert_close(found[1][name], grad, 1e-9, name)


def test_hidden_states_come_back_in_rows(tokenizer):
    model = make(tokenizer, EverySecond)
    batch = batch_of(model)
    with torch.no_grad():
        out = model.model(**batch, use_cache=False, output_hidden_states=True)
    shape = (*batch["input_ids"].shape, 64)
    assert [tuple(state.shape) for state in out.hidden_states] == [shape] * 5
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)
