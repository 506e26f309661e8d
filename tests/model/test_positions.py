"""Positions that the model computes itself: of videos and images in any order, padded, after a cache."""

import json
import random

import pytest
import torch
from transformers import Qwen2_5_VLModel

from nsa_lab.data.positions import CONTINUED
from nsa_lab.errors import NsaLabError
from nsa_lab.model import build_model, load_model
from nsa_testing import published_positions, tiny_config

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


def test_a_checkpoint_that_names_no_rule_is_refused(tokenizer, tmp_path):
    make(tokenizer, "qwen").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"positions": "quen"}))
    with pytest.raises(NsaLabError, match=r"positions=.quen. in its config\.json; correct it to qwen or"):
        load_model(tmp_path)
