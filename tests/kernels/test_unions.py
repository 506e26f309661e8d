"""The selection by each of its walks, and what sends a tile of queries over unions, in Triton's interpreter."""

import pytest
import torch

from nsa_kernels import selection_attention, uniform_blocks, workspace
from nsa_kernels.compression.reference import pool_reference
from nsa_kernels.runtime import INTERPRET
from nsa_kernels.selection import unions
from nsa_kernels.selection.forward import selection_forward
from nsa_kernels.selection.reference import selection_reference
from nsa_kernels.selection.unions import UnionTile, build_unions
from nsa_kernels.testing import odd_blocks, poisoned, random_heads, relative_error
from nsa_kernels.topk.reference import topk_reference

pytestmark = [
    pytest.mark.skipif(not INTERPRET, reason="needs TRITON_INTERPRET=1"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

HEADS = {"group of 1": (2, 2, 24), "group of 7": (14, 2, 16), "group of 16": (16, 1, 64)}
TOLERANCE = {torch.float32: 2e-6, torch.float16: 3e-3}
NEVER, ALWAYS = 0.0, float("inf")
TILE = UnionTile.of(32, 16, 4, 1, 7)


def gradients(function, blocks, chosen, inputs, do):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves, chosen, blocks, scale=0.3)
    return [out, *torch.autograd.grad(out, leaves, do)]


def check(blocks, chosen, inputs, do, tolerance):
    with poisoned():
        found = gradients(selection_attention, blocks, chosen, inputs, do)
    wanted = gradients(selection_reference, blocks, chosen, [x.double() for x in inputs], do.double())
    for number, (x, expected) in enumerate(zip(found, wanted, strict=True)):
        error = relative_error(x, expected, 0.1 * do.double().norm().item() if number else 1e-12)
        assert error <= (3 if number else 1) * tolerance, f"{('out', 'dq', 'dk', 'dv')[number]}: {error:.1e}"


@pytest.mark.pairwise
@pytest.mark.parametrize("walk", ["lists", "unions", "gathered"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("sparse", [False, True], ids=["all queries", "few queries"])
@pytest.mark.parametrize("permuted", [False, True], ids=["plain", "permuted"])
def test_each_walk(permuted, sparse, heads, dtype, walk, monkeypatch):
    monkeypatch.setattr(unions, "MOST_WASTE", ALWAYS if walk == "unions" else NEVER)
    monkeypatch.setattr(workspace, "MOST_SLOTS", 0 if walk == "gathered" else 128)
    blocks = odd_blocks(permuted=permuted, sparse=sparse)
    q, k, v, _, do = random_heads(blocks, heads, dtype)
    chosen = topk_reference(q.double(), pool_reference(k.double(), blocks), blocks, scale=0.3, block_count=3)
    chosen[::5] = -1
    chosen[1::5] = chosen[1::5].flip(2)  # empty slots first
    check(blocks, chosen, [q, k, v], do, TOLERANCE[dtype])


def neighbours():
    """Two packed samples in blocks of 16 and a ragged tail. The first queries of each share a choice; the last of group
    0 do not. Some stand inside or before what they chose, some chose nothing."""
    blocks = uniform_blocks(torch.tensor([0, 64, 89]), 16)
    chosen = torch.full((89, 2, 3), -1, dtype=torch.int32)
    query = torch.arange(89)
    chosen[:64] = torch.tensor([0, 2, 3], dtype=torch.int32)
    chosen[64:, :, 1:] = torch.tensor([4, 5], dtype=torch.int32)
    chosen[32:64, 0] = torch.stack([query[32:64] % 4, (query[32:64] + 1) % 4, torch.full((32,), -1)], 1).int()
    chosen[80:, 0, 1:] = torch.stack([query[80:] % 2 + 4, torch.full((9,), -1)], 1).int()
    chosen[[4, 5, 6, 7, 70]] = -1
    return blocks, chosen


@pytest.mark.parametrize("limit", [pytest.param(1.0, marks=pytest.mark.slow), 1.5])
def test_a_mixture_of_walks(limit, monkeypatch):
    blocks, chosen = neighbours()
    q, k, v, _, do = random_heads(blocks, (14, 2, 16), torch.float32)
    monkeypatch.setattr(unions, "MOST_WASTE", limit)
    check(blocks, chosen, [q, k, v], do, TOLERANCE[torch.float32])


@pytest.mark.slow
@pytest.mark.parametrize("slots", [128, 0], ids=["mixture", "gathered"])
def test_two_runs_are_bit_equal(slots, monkeypatch):
    monkeypatch.setattr(workspace, "MOST_SLOTS", slots)
    blocks, chosen = neighbours()
    q, k, v, _, do = random_heads(blocks, (14, 2, 16), torch.float32)
    monkeypatch.setattr(unions, "MOST_WASTE", 1.5)
    one, other = (gradients(selection_attention, blocks, chosen, [q, k, v], do) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.slow
def test_a_tile_goes_where_it_would_alone():
    blocks, chosen = neighbours()
    q, k, v, _, _ = random_heads(blocks, (14, 2, 16), torch.float32)
    mixed, lists, over_unions = (selection_forward(q, k, v, chosen, blocks, 0.3, w)[0] for w in (1.5, NEVER, ALWAYS))
    _, found = build_unions(chosen, blocks, 0, TILE, 1.5)
    taken = (found.count[0] > 0).repeat_interleave(4, 0)[:89].repeat_interleave(7, 1)[..., None]
    assert 0 < taken.sum() < taken.numel()
    assert torch.equal(mixed, torch.where(taken, over_unions, lists))
    assert not torch.equal(lists, over_unions)


@pytest.mark.parametrize("most_waste", [1.0, 1.5, ALWAYS])
def test_unions_are_the_distinct_blocks_of_a_tile(most_waste):
    blocks, chosen = neighbours()
    with poisoned():
        words, found = build_unions(chosen, blocks, 0, TILE, most_waste)
    assert TILE.queries == 4 and TILE.rows == 32
    left, taken = torch.zeros_like(words), []
    for t in range(23):
        for g in range(2):
            of_tile = chosen[4 * t : 4 * t + 4, g]
            union = [b for b in dict.fromkeys(of_tile.flatten().tolist()) if b >= 0]
            members = [sum(1 << i for i, row in enumerate(of_tile.tolist()) if b in row) for b in union]
            if not union or 4 * len(union) > most_waste * int((of_tile >= 0).sum()):
                assert found.count[0, t, g] == 0
                for block, bits in zip(union, members, strict=True):
                    left[t // 8, g, block] |= bits << 4 * (t % 8)
                continue
            taken.append(2 * t + g)
            place = blocks.offsets[union]
            length = blocks.offsets[torch.tensor(union) + 1] - place
            expected = torch.stack([place, length, torch.tensor(members, dtype=torch.int32)])
            front = (place + 16 <= 4 * t + 1) & (place < 80)
            assert found.count[:, t, g].tolist() == [len(union), front.sum()]
            met = found.met[:, t, g]
            assert torch.equal(met[:, : front.sum()], expected[:, front])
            assert torch.equal(met.flip(1)[:, : (~front).sum()], expected[:, ~front])
    assert torch.equal(words, left)
    assert sorted(found.taken[: found.taken_count].tolist()) == taken


@pytest.mark.parametrize("ratio", [1, 7], ids=["bits fill a word", "four queries"])
def test_choices_that_differ_everywhere_stay_with_the_lists(ratio):
    blocks, tile = uniform_blocks(torch.tensor([0, 512]), 8), UnionTile.of(32, 16, 4, 1, ratio)
    chosen = torch.arange(128)[:, None, None] % 8 * 8 + torch.arange(8).expand(128, 2, 8)
    words, found = build_unions(chosen.int().contiguous(), blocks, 0, tile, unions.MOST_WASTE)
    assert not found.count[0].any() and not found.taken_count
    assert popcount(words).sum() == chosen.numel()
    same = torch.arange(8, dtype=torch.int32).expand(128, 2, 8).contiguous()
    words, found = build_unions(same, blocks, 0, tile, unions.MOST_WASTE)
    assert (found.count[0] == 8).all() and not words.any()


def popcount(words):
    return sum((words >> i) & 1 for i in range(32))


@pytest.mark.parametrize(("rows", "ratio", "queries", "height"), [(128, 7, 16, 128), (128, 1, 32, 32), (64, 28, 2, 64)])
def test_a_tile_holds_whole_queries(rows, ratio, queries, height):
    tile = UnionTile.of(rows, 64, 8, 2, ratio)
    assert (tile.queries, tile.rows) == (queries, height)


def test_what_leaves_the_matrix_units_idle_goes_over_lists(monkeypatch):
    monkeypatch.setattr(unions, "INTERPRET", False)
    small, large = (UnionTile.of(rows, 64, 4, 1, 7) for rows in (16, 128))
    assert unions.waste_for(small, torch.bfloat16, None) == 0
    assert unions.waste_for(large, torch.bfloat16, None) > 0
    assert unions.waste_for(large, torch.float32, None) == 0
    assert unions.waste_for(small, torch.float32, 1.25) == 1.25
