"""Positions that the model computes itself: of videos and images in any order, padded, after a cache."""

import json
import random

import pytest
import torch
from transformers import Qwen2_5_VLModel

from nsa_lab.data.positions import CONTINUED
from nsa_lab.errors import NsaLabError
from nsa_lab.model import build_model, load_model
from nsa_lab.model.checkpoint import stored_positions
from nsa_testing import assert_close, published_positions, tiny_config

TEXT, IMAGE, VIDEO = 0, 1, 2


def make(tokenizer, positions):
    torch.manual_seed(0)
    return build_model(tiny_config(f"data.positions={positions}"), tokenizer).eval()


def random_row(draw, touching=False):
    """Types of a row's tokens, the grids of its images and of its videos."""
    types, grids = [], {IMAGE: [], VIDEO: []}
    for _ in range(draw.randint(1, 4)):
        types += [TEXT] * draw.randint(0 if touching else 1, 5)
        kind = draw.choice((TEXT, IMAGE, VIDEO, VIDEO))
        if kind != TEXT:
            grid = (1 if kind == IMAGE else draw.randint(1, 20), 2 * draw.randint(1, 4), 2 * draw.randint(1, 4))
            grids[kind].append(grid)
            types += [kind] * (grid[0] * grid[1] * grid[2] // 4)
    return types + [TEXT] * draw.randint(1, 5), grids[IMAGE], grids[VIDEO]


def inputs(model, rows, seconds, side="left"):
    """What get_rope_index is given for `rows`, shorter ones padded."""
    longest = max(len(types) for types, _, _ in rows)
    names = torch.tensor([60, model.config.image_token_id, model.config.video_token_id])
    ids, mask = torch.full((len(rows), longest), 1), torch.zeros(len(rows), longest, dtype=torch.long)
    for row, (types, _, _) in enumerate(rows):
        own = slice(longest - len(types), None) if side == "left" else slice(len(types))
        ids[row, own], mask[row, own] = names[types], 1
    images, videos = ([grid for row in rows for grid in row[kind]] for kind in (IMAGE, VIDEO))
    return {
        "input_ids": ids,
        "mm_token_type_ids": (ids == names[IMAGE]).long() + 2 * (ids == names[VIDEO]).long(),
        "attention_mask": mask,
        "image_grid_thw": torch.tensor(images) if images else None,
        "video_grid_thw": torch.tensor(videos) if videos else None,
        "second_per_grid_ts": torch.tensor(seconds) if videos else None,
    }


@pytest.mark.parametrize("seed", range(20))
def test_mixed_batches_are_placed_by_the_published_rule(tokenizer, seed):
    draw, model = random.Random(seed), make(tokenizer, "qwen")
    rows = [random_row(draw, touching=True) for _ in range(3)]
    seconds = [draw.choice((0.25, 0.5, 1.0, 3.0)) for row in rows for _ in row[VIDEO]]
    given = inputs(model, rows, seconds, draw.choice(("left", "right")))
    positions, deltas = model.model.get_rope_index(**given)
    used = 0
    for row, (types, images, videos) in enumerate(rows):
        expected = published_positions(types, images, videos, seconds[used : used + len(videos)])
        real = given["attention_mask"][row].bool()
        assert torch.equal(positions[:, row, real], expected)
        assert len(types) + int(deltas[row]) == int(expected.max()) + 1 == int(expected[0, -1]) + 1
        used += len(videos)


@pytest.mark.parametrize("seed", range(20))
def test_mixed_batches_are_placed_as_the_installed_transformers_does(tokenizer, seed):
    draw, model = random.Random(seed), make(tokenizer, "transformers")
    rows = [random_row(draw) for _ in range(3)]
    seconds = [draw.choice((1.0, 2.0, 3.0)) for row in rows for _ in row[VIDEO]]
    given = inputs(model, rows, seconds, draw.choice(("left", "right")))
    ours, theirs = model.model.get_rope_index(**given), Qwen2_5_VLModel.get_rope_index(model.model, **given)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


def test_tokens_and_grids_that_do_not_fit_are_refused(tokenizer):
    model = make(tokenizer, "qwen")
    given = inputs(model, [([0, 2, 2, 0], [], [(2, 2, 2)])], [1.0])
    with pytest.raises(ValueError, match="2 intervals for 1 videos"):
        model.model.get_rope_index(**given | {"second_per_grid_ts": torch.ones(2)})
    with pytest.raises(ValueError, match="2 video tokens for a grid of 3"):
        model.model.get_rope_index(**given | {"video_grid_thw": torch.tensor([[3, 2, 2]])})
    with pytest.raises(ValueError, match="2 of 2 video tokens in a row have no grid"):
        model.model.get_rope_index(**given | {"video_grid_thw": None, "second_per_grid_ts": None})


@pytest.mark.parametrize("positions", CONTINUED)
def test_a_saved_model_is_loaded_with_its_positions(tokenizer, tmp_path, positions, caplog):
    make(tokenizer, positions).save_pretrained(tmp_path)
    assert load_model(tmp_path).config.positions == positions
    assert "data.positions" not in caplog.text
    other = next(name for name in CONTINUED if name != positions)
    with caplog.at_level("WARNING"):
        assert load_model(tmp_path, positions=other).config.positions == other
    assert f"was trained with data.positions={positions} and is used with {other}" in caplog.text


def test_weights_that_say_nothing_of_positions(tokenizer, tmp_path):
    """Ours were saved when there was but one way; Qwen's were trained in theirs."""
    make(tokenizer, "qwen").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    stored = json.loads(file.read_text())
    del stored["positions"]
    file.write_text(json.dumps(stored))
    assert load_model(tmp_path).config.positions == "transformers"
    del stored["text_config"]["video_nsa"]
    file.write_text(json.dumps(stored | {"model_type": "qwen2_5_vl"}))
    assert stored_positions(tmp_path) == "qwen"
    assert tiny_config().data.positions == build_model(tiny_config(), tokenizer).config.positions == "qwen"


def test_a_checkpoint_that_names_no_rule_is_refused(tokenizer, tmp_path):
    make(tokenizer, "qwen").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"positions": "quen"}))
    with pytest.raises(NsaLabError, match=r"positions=.quen. in its config\.json; correct it to qwen or"):
        load_model(tmp_path)


# Tokens after a cache

LONG = [([TEXT] * 4 + [VIDEO] * 120 + [TEXT] * 5, [], [(20, 4, 6)])]
ROWS = {
    "text before and after": LONG,
    "several videos": [
        ([VIDEO] * 12 + [TEXT] * 3 + [VIDEO] * 60 + [TEXT] * 2, [], [(12, 2, 2), (10, 4, 6)]),
    ],
    "images between": [
        (
            [TEXT] * 2 + [IMAGE] * 4 + [TEXT] + [VIDEO] * 30 + [IMAGE] * 8 + [TEXT] * 2,
            [(1, 4, 4), (1, 2, 16)],
            [(30, 2, 2)],
        )
    ],
    "the video at the end": [([TEXT] * 3 + [VIDEO] * 20, [], [(20, 2, 2)])],
    "a ragged batch": [
        *LONG,
        ([TEXT] * 3 + [VIDEO] * 10 + [TEXT] * 6, [], [(10, 2, 2)]),
        ([TEXT] * 7, [], []),
    ],
}


def prompt(model, rows, seed=0, **more):
    """Model inputs for left-padded `rows`, a second from patch to patch, random words and pixels."""
    generator = torch.Generator().manual_seed(seed)
    videos = [grid for row in rows for grid in row[VIDEO]]
    given = {k: v for k, v in inputs(model, rows, [1.0] * len(videos)).items() if v is not None}
    words = torch.randint(20, 200, given["input_ids"].shape, generator=generator)
    given["input_ids"] = torch.where(given["input_ids"] == 60, words, given["input_ids"])
    if videos:
        patches = sum(t * h * w for t, h, w in videos)
        given["pixel_values_videos"] = torch.randn(patches, 1176, generator=generator)
    return given | more


def with_tokens(given, new):
    """The same inputs with `new` tokens [B, n] at their end."""
    pad = torch.nn.functional.pad
    return given | {
        "input_ids": torch.cat([given["input_ids"], new], 1),
        "mm_token_type_ids": pad(given["mm_token_type_ids"], (0, new.shape[1])),
        "attention_mask": pad(given["attention_mask"], (0, new.shape[1]), value=1),
    }


@torch.no_grad()
def logits(model, given, count):
    return model(**given, use_cache=False).logits[:, -count:]


@torch.no_grad()
def filled(model, given):
    return model(**given, use_cache=True).past_key_values


@torch.no_grad()
def step(model, cache, new, mask=None):
    return model(input_ids=new, past_key_values=cache, attention_mask=mask, use_cache=True).logits


def words(rows, count, seed=7):
    return torch.randint(20, 200, (rows, count), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("masked", [True, False], ids=["with a mask", "without"])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_tokens_after_a_cache_stand_where_one_forward_puts_them(tokenizer, rows, masked):
    """One token, then several at once, then one again."""
    model = make(tokenizer, "qwen")
    whole = prompt(model, rows)
    cache = filled(model, whole)
    for count in (1, 4, 1):
        new = words(len(rows), count, seed=count)
        whole = with_tokens(whole, new)
        found = step(model, cache, new, whole["attention_mask"] if masked else None)
        assert_close(found, logits(model, whole, count), 1e-5, f"{count} tokens")


def test_each_cache_knows_its_own_positions(tokenizer):
    """Not those of what the model has read since: another video, text alone, or ids that it was given."""
    model = make(tokenizer, "qwen")
    first, other, text = (
        prompt(model, LONG),
        prompt(model, ROWS["several videos"], 1),
        prompt(model, [([TEXT] * 6, [], [])]),
    )
    placed = prompt(model, LONG, 2, position_ids=model.model.get_rope_index(**inputs(model, LONG, [1.0]))[0])
    caches = [(given, filled(model, given)) for given in (first, other, text, placed)]
    new = words(1, 2)
    for given, cache in caches:
        bare = {name: value for name, value in given.items() if name != "position_ids"}
        assert_close(step(model, cache, new), logits(model, with_tokens(bare, new), 2), 1e-5)


def test_embeddings_alone_are_counted_from_0(tokenizer):
    """Whatever was read before."""
    model = make(tokenizer, "qwen")
    embeds = model.get_input_embeddings()(words(1, 6))
    with torch.no_grad():
        before = model(inputs_embeds=embeds, use_cache=False).logits
        filled(model, prompt(model, LONG))
        assert torch.equal(model(inputs_embeds=embeds, use_cache=False).logits, before)


def test_a_row_of_padding_alone_leaves_the_others_as_they_are(tokenizer):
    model = make(tokenizer, "qwen")
    given = prompt(model, [*LONG, ([], [], [])])
    found = generated(model, given)
    rows = {name: given[name][:1] for name in ("input_ids", "mm_token_type_ids", "attention_mask")}
    assert torch.equal(found.sequences[:1], generated(model, given | rows).sequences)
    assert all(torch.isfinite(step).all() for step in found.logits)


def test_token_types_need_not_be_given(tokenizer):
    model = make(tokenizer, "qwen")
    given = prompt(model, ROWS["images between"])
    bare = {name: value for name, value in given.items() if name != "mm_token_type_ids"}
    assert torch.equal(logits(model, bare, 2), logits(model, given, 2))
    assert torch.equal(generated(model, bare).sequences, generated(model, given).sequences)


def generated(model, given, count=5, **options):
    options |= {"do_sample": False, "pad_token_id": 0, "eos_token_id": None, "return_dict_in_generate": True}
    options["suppress_tokens"] = [model.config.image_token_id, model.config.video_token_id]  # they are no text
    return model.generate(**given, max_new_tokens=count, output_logits=True, **options)


def check_against_one_forward(model, given, out, count):
    length = given["input_ids"].shape[1]
    whole = with_tokens(given, out.sequences[:, length:])
    expected = logits(model, whole, count + 1)[:, :-1]
    assert_close(torch.stack(out.logits[-count:], 1), expected, 1e-5)


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"cache_implementation": "static"}], ids=str)
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_generated_tokens_stand_where_one_forward_puts_them(tokenizer, rows, options):
    model = make(tokenizer, "qwen")
    given = prompt(model, rows)
    check_against_one_forward(model, given, generated(model, given, **options), 5)


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_second_turns_go_on_after_the_first(tokenizer, rows):
    """generate(), a question more, generate() with the cache, though another video was asked about in between."""
    model = make(tokenizer, "qwen")
    given = prompt(model, rows)
    first = generated(model, given)
    generated(model, prompt(model, ROWS["several videos"], 3))
    answered = with_tokens(given, first.sequences[:, given["input_ids"].shape[1] :])
    asked = with_tokens(answered, words(len(rows), 3))
    again = {"input_ids": asked["input_ids"], "attention_mask": asked["attention_mask"]}
    second = generated(model, again, past_key_values=first.past_key_values)
    check_against_one_forward(model, asked, second, 5)


def test_guessed_tokens_are_taken_back(tokenizer):
    """Assisted decoding gives several tokens at once and crops the cache."""
    model = make(tokenizer, "qwen")
    given = prompt(model, LONG)
    given["input_ids"][0, -5:] = torch.tensor([30, 31, 30, 31, 30])
    plain = generated(model, given, 12)
    assert torch.equal(generated(model, given, 12, prompt_lookup_num_tokens=3).sequences, plain.sequences)


def test_beams_keep_their_rows(tokenizer):
    model = make(tokenizer, "qwen")
    given = prompt(model, ROWS["a ragged batch"])
    starts = given["mm_token_type_ids"].diff() == VIDEO
    # By this token transformers up to 5.17 counts the videos of a row.
    given["input_ids"][:, :-1][starts] = model.config.vision_start_token_id
    cached, uncached = (generated(model, dict(given), num_beams=3, use_cache=use) for use in (True, False))
    assert torch.equal(cached.sequences, uncached.sequences)
