"""FlexPrefill: its choice of heads, columns, diagonals and blocks against the published steps written down in loops."""

import math

import pytest
import torch

from nsa_baselines import HEADS, LAYOUTS, assert_follows, causal, layout_of, make_method, mask_read, peaked_heads
from nsa_lab.attention import groups
from nsa_lab.attention.methods.flex_prefill import divergence
from nsa_lab.config import load_config
from nsa_lab.config.rules import notices
from nsa_lab.errors import ConfigError


def softmax(scores):
    top = max(scores)
    raised = [math.exp(s - top) for s in scores]
    return [r / sum(raised) for r in raised]


def plain_head(q, k, block, gamma, tau, least):
    """The pairs of blocks one head reads, and whether it is query-aware: q, k [T, D], the logits' scale applied."""
    count, blocks = len(q), math.ceil(len(q) / block)
    vertical, slash = [0.0] * count, [0.0] * count
    for i in range(count - block, count):
        for j, weight in enumerate(softmax((k[: i + 1] @ q[i]).tolist())):
            vertical[j] += weight / block
            slash[i - j] += weight / block

    def covering(mass):
        reached, number = 0.0, 0
        for weight in sorted(mass, reverse=True):
            reached += weight
            number += reached <= gamma
        return min(max((number + 1) // block + 1, least), blocks)

    columns, diagonals = [0.0] * blocks, [0.0] * blocks
    for place in range(count):
        columns[place // block] += vertical[place]
        diagonals[blocks - 1 - (count - 1 - place) // block] += slash[place]
    pooled_k = [k[b * block : (b + 1) * block].mean(0) for b in range(blocks)]
    pooled_q = [q[b * block : (b + 1) * block].mean(0) for b in range(blocks)]
    guess = softmax([float(q[-block:].mean(0) @ key) for key in pooled_k])
    middle = [(a + b) / 2 for a, b in zip(guess, columns, strict=True)]
    parts = [x * math.log(x / m) for p in (guess, columns) for x, m in zip(p, middle, strict=True)]
    aware = math.sqrt(sum(parts) / 2) < tau
    number_v, number_s = (least, least) if aware else (covering(vertical), covering(slash))
    by_column = sorted(range(blocks), key=lambda b: (b != 0, -columns[b]))[:number_v]
    by_diagonal = sorted(range(blocks), key=lambda b: (b != 0, -diagonals[b]))[:number_s]
    pairs = {(row, c) for row in range(blocks) for c in range(blocks) if c in by_column or row - c in by_diagonal}
    if aware:
        rows = [softmax([float(pooled_q[r] @ pooled_k[c]) for c in range(r + 1)]) for r in range(blocks)]
        reached = 0.0
        for weight, row, column in sorted(
            ((w, r, c) for r, own in enumerate(rows) for c, w in enumerate(own)), reverse=True
        ):
            reached += weight
            if reached <= gamma * blocks:
                pairs.add((row, column))
    return pairs, aware


def plain_mask(block, gamma, tau, min_budget, kinds=None):
    """kinds: where to note which heads were query-aware."""
    least = math.ceil((min_budget or 1) / block)

    def mask_of(q, k):
        count, repeat = len(q), q.shape[1] // k.shape[1]
        if count <= max(2, least) * block:
            return causal(count).expand(q.shape[1], -1, -1)
        mask = torch.zeros(q.shape[1], count, count, dtype=torch.bool)
        for h in range(q.shape[1]):
            pairs, aware = plain_head(q[:, h] * q.shape[-1] ** -0.5, k[:, h // repeat], block, gamma, tau, least)
            if kinds is not None:
                kinds.append(aware)
            for row, column in pairs:
                mask[h, row * block : (row + 1) * block, column * block : (column + 1) * block] = True
        return mask & causal(count)

    return mask_of


def overrides(block, gamma, tau, min_budget):
    own = {"block_size": block, "gamma": gamma, "tau": tau, "min_budget": min_budget or "null"}
    return ["method=flex_prefill", f"flex_prefill={{{', '.join(f'{k}: {v}' for k, v in own.items())}}}"]


@pytest.mark.pairwise
@pytest.mark.parametrize("pieces", ["one piece", "many pieces"])
@pytest.mark.parametrize("min_budget", [None, 10])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("settings", [(4, 0.5, 0.0), (4, 0.5, 0.12), (5, 0.8, 1.0), (8, 0.3, 0.12)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_dense_attention_to_the_chosen_blocks(layout, settings, heads, min_budget, pieces, monkeypatch):
    if pieces == "many pieces":
        monkeypatch.setattr(groups, "PIECE_BYTES", 2000)
        monkeypatch.setattr(groups, "MIN_ROWS", 5)
    own = (*settings, min_budget)
    assert_follows(make_method(heads, *overrides(*own)), layout_of(LAYOUTS[layout]), heads, plain_mask(*own))


@pytest.mark.parametrize("min_budget", [None, 17])
def test_heads_of_both_kinds_stand_side_by_side_and_a_least_budget_reads_more(min_budget):
    q, k, _ = peaked_heads(93, HEADS[1])
    q[:, :3] *= 0.2  # nearly even attention, which pooled keys foretell
    kinds = []
    mask = plain_mask(8, 0.4, 0.2, min_budget, kinds)(q, k)
    assert 0 < sum(kinds) < len(kinds)
    choice = make_method(HEADS[1], *overrides(8, 0.4, 0.2, min_budget)).choose(q, k)
    assert torch.equal(mask_read(choice, 7, 93), mask)
    least = plain_mask(8, 0.4, 0.2, None)(q, k)
    assert mask.sum() < 0.85 * 7 * causal(93).sum()
    assert (mask.sum() > least.sum()) == (min_budget is not None)
    scored = sum(range(93 - 8 + 1, 94)) + 12 + sum(kinds) / 7 * 12 * 13 / 2
    assert choice.scored == pytest.approx(scored / 93)


def test_the_divergence_of_distributions_with_nothing_in_common_is_that_of_one_bit():
    one, other = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.5, 0.5])
    assert divergence(one, other).item() == pytest.approx(math.sqrt(math.log(2)))
    assert divergence(one, one).item() == 0


def test_what_is_worth_saying_is_said():
    said = notices(load_config(None, ["tasks.needle.enabled=true", "attention.method=flex_prefill"]))
    assert any("the last 128 tokens of a needle sample choose" in notice for notice in said)
    assert any("dense on samples of up to 256 tokens" in notice for notice in said)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("flex_prefill.gamma=2", r"flex_prefill\.gamma: 2\.0 is outside 0 to 1"),
        ("flex_prefill.tau=-1", r"flex_prefill\.tau: -1\.0 is negative"),
        ("flex_prefill.block_size=0", r"flex_prefill\.block_size: 0 is not positive"),
        ("flex_prefill.min_budget=0", r"flex_prefill\.min_budget: 0 is not positive; use null"),
    ],
)
def test_settings_that_cannot_be_are_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        make_method(HEADS[0], "method=flex_prefill", given)
