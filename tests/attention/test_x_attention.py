"""XAttention: its estimate and choice against sums written down pair by pair, and how far a choice looks ahead."""

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
from nsa_lab.errors import ConfigError


def plain_mask(block, stride, threshold):
    """[H, T, T] bool of q [T, H, D] and k [T, G, D]: arXiv 2503.16428, algorithm 1, in loops."""

    def estimate(pairs):
        count = len(pairs)
        numbers, blocks = range(-(-count // stride)), range(-(-count // block))
        mass = torch.zeros(len(blocks), len(blocks), dtype=torch.float64)
        for row in numbers:
            scores = [
                sum(
                    pairs[row * stride + stride - 1 - r][column * stride + r]
                    for r in range(stride)
                    if row * stride + stride - 1 - r < count and column * stride + r < count
                )
                / stride
                for column in numbers
                if column <= row
            ]
            weights = torch.tensor(scores, dtype=torch.float64).softmax(0)
            for column, weight in enumerate(weights):
                mass[row * stride // block, column * stride // block] += weight
        return mass

    def choose(mass, row):
        chosen = {0, row}
        for column in sorted(set(range(row)) - chosen, key=lambda column: -mass[row, column].item()):
            if sum(mass[row, c] for c in chosen) < threshold * mass[row].sum():
                chosen.add(column)
        return chosen

    def mask_of(q, k):
        repeat, count = q.shape[1] // k.shape[1], len(q)
        mask = torch.zeros(q.shape[1], count, count, dtype=torch.bool)
        for h in range(q.shape[1]):
            mass = estimate((q[:, h] @ k[:, h // repeat].T * q.shape[-1] ** -0.5).tolist())
            for i in range(count):
                for column in choose(mass, i // block):
                    mask[h, i, column * block : min(i + 1, (column + 1) * block)] = True
        return mask

    return mask_of


def overrides(block, stride, threshold):
    return ["method=x_attention", f"x_attention={{block_size: {block}, stride: {stride}, threshold: {threshold}}}"]


@pytest.mark.pairwise
@pytest.mark.parametrize("pieces", ["one piece", "many pieces"])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("settings", [(8, 4, 0.6), (6, 3, 0.9), (4, 4, 0.3), (8, 2, 0.75)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_dense_attention_to_the_chosen_blocks(layout, settings, heads, pieces, monkeypatch):
    if pieces == "many pieces":
        monkeypatch.setattr(groups, "PIECE_BYTES", 2000)
        monkeypatch.setattr(groups, "MIN_ROWS", 5)
    assert_follows(make_method(heads, *overrides(*settings)), layout_of(LAYOUTS[layout]), heads, plain_mask(*settings))


def test_heads_choose_apart_and_spend_less_than_dense():
    q, k, _ = peaked_heads(96, HEADS[0])
    mask = plain_mask(8, 4, 0.7)(q, k)
    assert not torch.equal(mask[0], mask[1])
    method = make_method(HEADS[0], *overrides(8, 4, 0.7))
    choice = method.choose(q, k)
    assert torch.equal(mask_read(choice, 4, 96), mask)
    assert mask.sum() < 0.8 * 4 * causal(96).sum()
    assert choice.scored == 24 * 25 / 2 * 4 / 96


def test_a_choice_looks_ahead_to_the_end_of_its_own_block_and_no_further():
    method, layout = make_method(HEADS[0], *overrides(8, 4, 0.5)), layout_of([[3, (8, 2, 3), 13]])
    given = peaked_heads(64, HEADS[0])
    before = prefill(method, layout, *given)[0]
    ahead = 0
    for changed in range(1, 64, 3):
        other = [x.clone() for x in given]
        for x in other:
            x[changed:] = torch.randn(x[changed:].shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
        after = prefill(method, layout, *other)[0]
        first = changed // 8 * 8
        assert torch.equal(after[:first], before[:first])
        ahead += int((after[first:changed] != before[first:changed]).any())
    assert ahead


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "x_attention.block_size=100",
            r"x_attention\.block_size: 100 is no multiple of stride=16; use one, such as 128",
        ),
        ("x_attention.stride=0", r"x_attention\.block_size: 128 is no multiple of stride=0"),
        ("x_attention.threshold=1.5", r"x_attention\.threshold: 1\.5 is outside 0 to 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        make_method(HEADS[0], "method=x_attention", given)
