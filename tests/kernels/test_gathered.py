"""The selection by gathered keys: many small blocks, long ones in parts, rounds of queries; in Triton's interpreter."""

import pytest
import torch

from nsa_kernels import (
    blocks_from_offsets,
    choose_blocks,
    selection_attention,
    video_nsa,
    video_nsa_with_blocks,
    workspace,
)
from nsa_kernels.checks import MOST_BLOCK_COUNT
from nsa_kernels.compression.reference import compression_lse_reference, pool_reference
from nsa_kernels.reference import video_nsa_reference
from nsa_kernels.runtime import INTERPRET
from nsa_kernels.selection import backward
from nsa_kernels.selection.reference import selection_reference
from nsa_kernels.testing import poisoned, random_heads, relative_error, uneven
from nsa_kernels.topk.reference import topk_reference

pytestmark = [
    pytest.mark.skipif(not INTERPRET, reason="needs TRITON_INTERPRET=1"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


def few_queries(lengths, every, permuted=False):
    """Samples of blocks of these lengths, and every so many keys a query, so that the interpreter runs few programs."""
    samples = [sum(of_sample) for of_sample in lengths]
    bounds = torch.tensor([0, *samples]).cumsum(0)
    offsets = torch.tensor([0, *(n for of_sample in lengths for n in of_sample)]).cumsum(0)
    order = torch.cat([torch.randperm(n) + begin for n, begin in zip(samples, bounds.tolist(), strict=False)])
    queries = torch.arange(every - 1, int(bounds[-1]), every)
    return blocks_from_offsets(offsets, bounds, order=order if permuted else None, query_index=queries)


def gradients(function, inputs, do, *given, **options):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves, *given, **options)
    return [out, *torch.autograd.grad(out, leaves, do)]


def check(found, wanted, do, tolerance=2e-6):
    least = 0.1 * do.double().norm().item()
    for number, (x, expected) in enumerate(zip(found, wanted, strict=True)):
        error = relative_error(x, expected, least if number else 1e-12)
        assert error <= (3 if number else 1) * tolerance, f"{number}: {error:.1e}"


@pytest.mark.slow
def test_the_layer_with_more_blocks_than_slots():
    """Some queries have fewer blocks to choose from, the last ones more."""
    blocks = few_queries(uneven((20, 0, 220), 2), 48)
    *inputs, do = random_heads(blocks, (7, 1, 24), torch.float32)
    options = {"block_count": workspace.MOST_SLOTS + 1, "window": 3}
    with poisoned():
        _, chosen = video_nsa_with_blocks(*inputs, blocks, **options)
        found = gradients(video_nsa, inputs, do, blocks, **options)
    assert (chosen[:, :, -1] >= 0).any() and (chosen[:, :, -1] < 0).any()
    wide = [x.double() for x in inputs]
    check(found, gradients(video_nsa_reference, wide, do.double(), blocks, **options), do)


def test_the_choice_and_the_output_of_as_many_blocks_as_can_be_chosen():
    blocks = few_queries(([1] * 3, [], [1] * 530), 265)
    q, k, v, _, _ = random_heads(blocks, (7, 1, 24), torch.float32)
    lse = compression_lse_reference(q, k, blocks, scale=0.3)
    chosen = choose_blocks(q, k, blocks, block_count=MOST_BLOCK_COUNT, scale=0.3, lse=lse)
    assert torch.equal(chosen, topk_reference(q, k, blocks, scale=0.3, block_count=MOST_BLOCK_COUNT))
    with poisoned():
        out = selection_attention(q, k, v, chosen, blocks, scale=0.3)
    expected = selection_reference(*(x.double() for x in (q, k, v)), chosen, blocks, scale=0.3)
    assert relative_error(out, expected) < 2e-6


@pytest.mark.parametrize("permuted", [pytest.param(False, marks=pytest.mark.slow), True], ids=["plain", "permuted"])
def test_long_blocks_in_rounds_of_queries(permuted, monkeypatch):
    """Longer than a tile of keys, so that both the queries' walk and the lists' take them in parts."""
    monkeypatch.setattr(workspace, "MOST_SLOTS", 0)
    monkeypatch.setattr(backward, "selection_chunk", lambda *_: 3)
    blocks = few_queries(([80, 1, 33], [5, 40, 3]), 32, permuted)
    assert blocks.num_queries == 5
    q, k, v, _, do = random_heads(blocks, (2, 1, 16), torch.float32)
    chosen = topk_reference(q, pool_reference(k, blocks), blocks, scale=0.3, block_count=3)
    found = gradients(selection_attention, [q, k, v], do, chosen, blocks, scale=0.3)
    wide = [x.double() for x in (q, k, v)]
    check(found, gradients(selection_reference, wide, do.double(), chosen, blocks, scale=0.3), do)


@pytest.mark.parametrize("permuted", [pytest.param(False, marks=pytest.mark.slow), True], ids=["plain", "permuted"])
def test_packs_of_short_blocks(permuted, monkeypatch):
    """Four of up to four tokens are met at once for dk and dv; one pack holds the end of a sample and the next one's
    start, the last is not full, and queries chose all, some and one of a pack."""
    monkeypatch.setattr(workspace, "MOST_SLOTS", 0)
    blocks = few_queries(([2, 1, 3, 4, 2, 3], [1, 4, 2, 3]), 1, permuted)
    q, k, v, _, do = random_heads(blocks, (7, 1, 16), torch.float32)
    first = blocks.first_block[:, None, None]
    chosen = (first + torch.rand(len(q), 1, 4).argsort(-1)).int()
    chosen[::3, :, 1] = -1
    found = gradients(selection_attention, [q, k, v], do, chosen, blocks, scale=0.3)
    wide = [x.double() for x in (q, k, v)]
    check(found, gradients(selection_reference, wide, do.double(), chosen, blocks, scale=0.3), do)
