"""MInference's vertical-slash heads against the published steps written down in loops, and tables by layer and head."""

import json
import math

import pytest
import torch

from nsa_baselines import (
    HEADS,
    LAYOUTS,
    assert_follows,
    causal,
    layout_of,
    make_method,
    mask_read,
    peaked_heads,
    prefill,
)
from nsa_lab.attention import groups
from nsa_lab.config import load_config
from nsa_lab.config.rules import notices
from nsa_lab.errors import ConfigError, NsaLabError
from nsa_lab.model import build_model
from nsa_testing import tiny_config

SMALL = {"last": 6, "first": 2, "near": 3, "block_size": 4}


def plain_mask(sizes, last, first, near, block_size):
    """sizes: (columns, diagonals) by head."""

    def mask_of(q, k):
        count, repeat = len(q), q.shape[1] // k.shape[1]
        mask = torch.zeros(q.shape[1], count, count, dtype=torch.bool)
        for h, (columns, diagonals) in enumerate(sizes):
            by_key, by_distance = [0.0] * count, [0.0] * count
            for i in range(max(0, count - last), count):
                logits = (k[: i + 1, h // repeat] @ q[i, h] * q.shape[-1] ** -0.5).tolist()
                total = sum(math.exp(x) for x in logits)
                for j, logit in enumerate(logits):
                    by_key[j] += math.exp(logit) / total
                    by_distance[i - j] += math.exp(logit) / total
            kept = set(sorted(range(count), key=lambda j: (j >= first, -by_key[j] * (j >= first)))[:columns])
            far = set(sorted(range(count), key=lambda d: (d >= near, -by_distance[d] * (d >= near)))[:diagonals])
            for i in range(count):
                begin = i // block_size * block_size
                for j in range(i + 1):
                    wide = any(row - j in far for row in range(begin, begin + block_size))
                    mask[h, i, j] = j in kept or wide
        return mask

    return mask_of


def overrides(**own):
    return ["method=minference", f"minference={{{', '.join(f'{k}: {v}' for k, v in own.items())}}}"]


def write_table(folder, layers):
    file = folder / "table.json"
    entry = [{str(h): ["vertical_and_slash", *sizes, 0.9] for h, sizes in enumerate(layer)} for layer in layers]
    file.write_text(json.dumps(entry))
    return str(file)


@pytest.mark.pairwise
@pytest.mark.parametrize("pieces", ["one piece", "many pieces"])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("sizes", [(5, 4), (1, 9), (0, 1), (200, 1), (2, 300)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_dense_attention_to_columns_and_diagonals(layout, sizes, heads, pieces, monkeypatch):
    if pieces == "many pieces":
        monkeypatch.setattr(groups, "PIECE_BYTES", 2000)
        monkeypatch.setattr(groups, "MIN_ROWS", 5)
    method = make_method(heads, *overrides(vertical=sizes[0], slash=sizes[1], **SMALL))
    assert_follows(method, layout_of(LAYOUTS[layout]), heads, plain_mask([sizes] * heads[0], **SMALL))


def test_each_head_has_its_own_sizes_from_the_table(tmp_path):
    sizes = [(3, 4), (9, 3), (2, 12), (6, 6)]
    table = write_table(tmp_path, [sizes])
    method = make_method(HEADS[0], *overrides(table=table, **SMALL))
    cost = assert_follows(method, layout_of(LAYOUTS["two videos"]), HEADS[0], plain_mask(sizes, **SMALL))
    # Of 67 and 11 rows the last six score all before them.
    scored = [sum(range(count - 5, count + 1)) / count for count in (67, 11)]
    assert cost.scored == pytest.approx((51 * scored[0] + 8 * scored[1]) / 59)
    q, k, _ = peaked_heads(80, HEADS[0])
    read = mask_read(method.choose(q, k), 4, 80).sum((1, 2))
    assert len(set(read.tolist())) == 4 and read.max() < 0.8 * causal(80).sum()


def test_what_is_read_depends_on_the_end_of_the_sample_and_that_is_said():
    method, layout = make_method(HEADS[0], *overrides(vertical=3, slash=3, **SMALL)), layout_of([[3, (8, 2, 3), 13]])
    given = peaked_heads(64, HEADS[0])
    other = [x.clone() for x in given]
    other[0][-1] *= -1
    before, after = (prefill(method, layout, *heads)[0] for heads in (given, other))
    assert not torch.equal(before[:50], after[:50])
    said = notices(load_config(None, ["tasks.needle.enabled=true", "attention.method=minference"]))
    assert any("the last 64 tokens of a needle sample choose" in notice for notice in said)
    assert any("minference.slash=6096 holds every diagonal" in notice for notice in said)


def test_a_model_takes_its_layers_from_the_table(tmp_path, tokenizer):
    table = write_table(tmp_path, [[(1, 2)] * 4, [(3, 4), (5, 6), (7, 8), (9, 10)]])
    model = build_model(tiny_config("attention.method=minference", f"attention.minference.table={table}"), tokenizer)
    first, second = (attention.method for attention in model.attentions())
    assert first.columns == (1, 1, 1, 1) and first.diagonals == (2, 2, 2, 2)
    assert second.columns == (3, 5, 7, 9) and second.diagonals == (4, 6, 8, 10)
    short = write_table(tmp_path, [[(1, 2)] * 4, [(1, 2)] * 3])
    with pytest.raises(NsaLabError, match="no entry for every one of the 4 heads of layer 1; take a table"):
        build_model(tiny_config("attention.method=minference", f"attention.minference.table={short}"), tokenizer)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"minference\.table: .*table\.json cannot be read \(No such file"),
        ("{", r"minference\.table: .* is no list of layers"),
        ("[3]", r"minference\.table: .* is no list of layers"),
        ('[{"0": ["block_sparse", 100, 100, 1.0]}]', r"layer 0, head 0 is \['block_sparse', 100, 100, 1\.0\]; only"),
        ('[{"0": ["vertical_and_slash", 100, 0, 1.0]}]', r"layer 0, head 0 is .*; only"),
    ],
)
def test_a_table_that_cannot_be_computed_is_refused(tmp_path, content, said):
    file = tmp_path / "table.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=said):
        make_method(HEADS[0], *overrides(table=file))


@pytest.mark.parametrize(
    ("given", "said"),
    [("near=0", "0 is not positive"), ("slash=0", "0 is not positive"), ("vertical=-1", "-1 is negative")],
)
def test_settings_that_cannot_be_are_refused(given, said):
    with pytest.raises(ConfigError, match=rf"minference\.{given.split('=')[0]}: {said}"):
        make_method(HEADS[0], "method=minference", f"minference.{given}")
