"""The choice among scores that are hard to tell apart, in Triton's interpreter."""

import pytest
import torch

from nsa_kernels import uniform_blocks
from nsa_kernels.runtime import INTERPRET, launch, padded
from nsa_kernels.topk.forward import _select

pytestmark = pytest.mark.skipif(not INTERPRET, reason="needs TRITON_INTERPRET=1")

BLOCKS, COUNT = 48, 6
AT = torch.arange(BLOCKS)
SCORES = {
    "all equal": torch.full((BLOCKS,), 0.25),
    "nothing": torch.zeros(BLOCKS),
    "two values": torch.where(AT % 3 == 0, 1.0, torch.tensor(1.0).nextafter(torch.tensor(2.0))),
    "fewer above zero than are chosen": torch.where(AT % 16 == 5, 1e-3, 0.0),
    "denormal": (AT * 7 % 11) * 1e-44,
    "one huge": torch.where(AT == 17, 3e38, 1e-38),
    "geometric": 2.0 ** -((AT * 5) % BLOCKS).float() * 2.0**-90,
    "rising by the least": (torch.tensor(0.5).view(torch.int32) + AT.int()).view(torch.float32),
    "falling by the least": (torch.tensor(0.5).view(torch.int32) - AT.int()).view(torch.float32),
    "ties at the edge": torch.where(AT < 3, 2.0, torch.where(AT < 20, 1.0, 0.5)),
    "drawn": torch.rand(BLOCKS, generator=torch.Generator().manual_seed(0)),
}


def choose(scores, count=COUNT, local=1, budget=0):
    """[R, count] of scores [R, BLOCKS], for the last R queries of a sample of BLOCKS blocks of one token."""
    blocks = uniform_blocks(torch.tensor([0, BLOCKS]), 1)
    begin = BLOCKS - len(scores)
    chosen = torch.full((BLOCKS, 1, count), -1, dtype=torch.int32)
    launch(_select, (len(scores), 1),
        scores.contiguous(), chosen, chosen, blocks.offsets, blocks.position, blocks.first_block, blocks.last_block,
        blocks.closed_below, blocks.start, blocks.end, blocks.block_of_query,
        begin, BLOCKS, BLOCKS, BLOCKS, count, budget, 0, local,
        G=1, W=padded(BLOCKS, 32), SLOTS=padded(count, 1), TILE=1, TOKENS=budget > 0, PERMUTED=False,
    )  # fmt: skip
    return chosen[begin:, 0]


def expected(scores, count, local):
    """The query's own block where it is forced, then the best, the earlier of equal ones first."""
    rows = []
    for query, row in enumerate(scores.tolist(), BLOCKS - len(scores)):
        forced = [query] * local
        others = sorted(set(range(query + 1)) - set(forced), key=lambda block: (-row[block], block))
        rows.append(sorted([*forced, *others][:count]))
    return torch.tensor(rows, dtype=torch.int32)


@pytest.mark.parametrize(("count", "local"), [(COUNT, 1), pytest.param(COUNT, 0, marks=pytest.mark.slow), (1, 1)])
def test_scores_that_are_hard_to_tell_apart(count, local):
    scores = torch.stack(list(SCORES.values()))
    chosen = choose(scores, count, local)
    for name, found, best in zip(SCORES, chosen, expected(scores, count, local), strict=True):
        assert torch.equal(found, best), name


def test_a_budget_of_tokens_among_them():
    """A block is one token long, so that the budget is a count."""
    scores = torch.stack(list(SCORES.values()))
    chosen = choose(scores, budget=4)
    assert torch.equal(chosen[:, :4], expected(scores, 4, 1)) and (chosen[:, 4:] == -1).all()


def test_scores_that_are_not_numbers_choose_no_more_than_there_are_slots():
    """More would be written over other queries' choices, and past the last."""
    chosen = choose(torch.tensor([[float("nan")] * BLOCKS, [-float("nan")] * BLOCKS]))
    assert chosen[0].tolist() == [0, 1, 2, 3, 4, BLOCKS - 2] and chosen[1].tolist() == [BLOCKS - 1, *[-1] * (COUNT - 1)]
