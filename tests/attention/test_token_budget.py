"""The rule `token_budget`: both backends alike, within the budget, forced blocks first, a threshold on the ranking."""

import pytest
import torch

from nsa_lab.attention import groups
from nsa_lab.attention.backends import BACKENDS
from nsa_lab.attention.compressors import mean_of_blocks
from nsa_lab.partition import partition_from_block_id, sparse_context
from nsa_testing import ODD_SHAPES, block_rule, compression_scorer, random_heads, token_layout

SCORER = compression_scorer()
reference, torch_path = (BACKENDS["reference"], BACKENDS["torch"])

SHAPES = [(2, (6, 2, 4), 1), (0, (3, 3, 3), 1)]


def ragged_blocks(tokens, longest, seed=0):
    """Blocks of random lengths up to `longest` that cross no segment."""
    generator = torch.Generator().manual_seed(seed)
    block_id, block, left, before = [], -1, 0, None
    for segment in tokens.segment.tolist():
        if segment != before or left == 0:
            block, left, before = block + 1, int(torch.randint(1, longest + 1, (), generator=generator)), segment
        left -= 1
        block_id.append(block)
    return partition_from_block_id(torch.tensor(block_id, dtype=torch.int64), tokens.cu_seqlens, "token")


def budget(tokens, count=8, initial=0, local=1):
    return block_rule(count, initial, local, "token_budget", tokens)


@pytest.fixture(params=["one piece", "many pieces"])
def pieces(request, monkeypatch):
    if request.param == "many pieces":
        monkeypatch.setattr(groups, "PIECE_BYTES", 2000)
        monkeypatch.setattr(groups, "MIN_ROWS", 5)


@pytest.mark.pairwise
@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("context", ["video", "all"])
@pytest.mark.parametrize("shapes", [SHAPES, ODD_SHAPES], ids=["two samples", "odd"])
@pytest.mark.parametrize(
    "rule",
    [budget(16), budget(7, local=0), budget(24, count=3), budget(21, initial=1, local=2), budget(1000, count=50)],
)
def test_both_backends_choose_the_same_within_the_budget(rule, shapes, context, biased):
    tokens = sparse_context(token_layout(shapes), context)
    blocks = ragged_blocks(tokens, 7)
    q, k, _ = random_heads(len(tokens.query_index), len(tokens.token_index), (4, 2, 16), torch.float64).all
    bias = blocks.lengths.double().log() if biased else None
    chosen = [
        ops.select_blocks(
            q, mean_of_blocks(k, blocks), tokens, blocks,
            scale=0.25, scorer=SCORER, rule=rule, block_bias=bias,
        )
        for ops in (reference, torch_path)
    ]  # fmt: skip
    assert torch.equal(*chosen)
    spent = torch.where(chosen[0] >= 0, blocks.lengths[chosen[0].clamp(min=0)], 0).sum(-1)
    assert spent.max() <= rule.rule.config.token_budget
    assert (chosen[0] >= 0).sum(-1).max() <= rule.block_count
    if rule.local_blocks:
        assert (chosen[0] == blocks.block_id[tokens.query_index][:, None, None]).any(-1).all()


def test_blocks_of_one_length_and_a_budget_of_n_blocks_are_the_top_n():
    tokens = sparse_context(token_layout([(1, (8, 2, 3), 1)]), "video")
    blocks = partition_from_block_id(torch.arange(48) // 6, tokens.cu_seqlens, "token")
    q, k, _ = random_heads(48, 48, (4, 2, 16), torch.float64).all
    pooled = mean_of_blocks(k, blocks)
    by_count, by_tokens = (
        torch_path.select_blocks(q, pooled, tokens, blocks, scale=0.25, scorer=SCORER, rule=rule)
        for rule in (block_rule(3, 1, 1), block_rule(3, 1, 1, "token_budget", 18))
    )
    assert torch.equal(by_count, by_tokens)


def choose(scores, lengths, rule, forced=()):
    """One row that sees every block; its chosen blocks."""
    count = len(scores)
    is_forced = torch.zeros(1, 1, count, dtype=torch.bool)
    is_forced[..., list(forced)] = True
    visible = torch.ones(1, 1, count, dtype=torch.bool)
    scores = torch.tensor(scores, dtype=torch.float64)[None, None, None]
    number = rule.rule.choose(scores, visible, is_forced, torch.tensor([lengths]))
    return [block for block in number.flatten().tolist() if block >= 0]


def test_mass_per_token_ranks_not_mass():
    assert choose([0.5, 0.3, 0.2], [10, 2, 2], budget(4)) == [1, 2]
    assert choose([0.5, 0.3, 0.2], [10, 2, 2], block_rule(1)) == [0]


def test_it_stops_at_the_first_block_that_would_exceed():
    # Per token: 0.1, 0.06, 0.05. The second does not fit after the first; the third would, and must not get in.
    assert choose([0.4, 0.3, 0.05], [4, 5, 1], budget(8)) == [0]
    assert choose([0.4, 0.3, 0.05], [4, 5, 1], budget(9)) == [0, 1]
    assert choose([0.4, 0.3, 0.05], [4, 5, 1], budget(10)) == [0, 1, 2]


def test_equal_mass_per_token_goes_to_the_earlier_block():
    assert choose([0.2, 0.4, 0.2, 0.2], [2, 4, 2, 2], budget(6)) == [0, 1]


def test_forced_blocks_are_paid_for_first():
    assert choose([0.1, 0.8, 0.1], [4, 4, 4], budget(8), forced=[2]) == [1, 2]
    assert choose([0.1, 0.8, 0.1], [4, 4, 4], budget(7), forced=[2]) == [2]


def test_no_more_blocks_than_slots():
    assert choose([0.1, 0.2, 0.3, 0.4], [1, 1, 1, 1], budget(100, count=2)) == [2, 3]
