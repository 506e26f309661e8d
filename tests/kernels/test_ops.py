"""Every op against its float64 reference, in Triton's interpreter, forward and backward."""

import threading

import pytest
import torch

from nsa_kernels import (
    blocks_from_offsets,
    choose_blocks,
    combine_branches,
    compression_attention,
    compression_lse,
    pool_blocks,
    runtime,
    selection_attention,
    uniform_blocks,
    video_nsa,
    window_attention,
)
from nsa_kernels.combine.reference import combine_reference
from nsa_kernels.compression.reference import compression_lse_reference, compression_reference, pool_reference
from nsa_kernels.runtime import INTERPRET
from nsa_kernels.selection.reference import selection_reference
from nsa_kernels.testing import odd_blocks, poisoned, random_heads, relative_error
from nsa_kernels.topk.reference import topk_reference
from nsa_kernels.window.reference import window_reference

pytestmark = [
    pytest.mark.skipif(not INTERPRET, reason="needs TRITON_INTERPRET=1"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

HEADS = {"group of 1": (2, 2, 24), "group of 7": (7, 1, 16), "group of 16": (16, 1, 64)}
TOLERANCE = {torch.float32: 2e-6, torch.float16: 3e-3}

in_order_and_permuted = pytest.mark.parametrize("permuted", [False, True], ids=["plain", "permuted"])
all_and_few_queries = pytest.mark.parametrize("sparse", [False, True], ids=["all queries", "few queries"])
each_head_layout = pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def check(op, reference, inputs, do, tolerance):
    """op and its gradients against those of the float64 reference."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    with poisoned():
        out = op(*leaves)
        grads = torch.autograd.grad(out, leaves, do)
    expected = reference(*wide)
    wanted = torch.autograd.grad(expected, wide, do.double())
    assert relative_error(out, expected) <= tolerance
    least = 0.1 * do.double().norm().item()  # a window of one has no gradient for q and k
    for number, (grad, want) in enumerate(zip(grads, wanted, strict=True)):
        assert grad.dtype == inputs[number].dtype
        assert relative_error(grad, want, least) <= 3 * tolerance, f"gradient {number}"


@each_dtype
@all_and_few_queries
@in_order_and_permuted
def test_pool(permuted, sparse, dtype):
    blocks = odd_blocks(permuted=permuted, sparse=sparse)
    _, k, _, _, _ = random_heads(blocks, (6, 3, 24), dtype)
    do = torch.randn(blocks.num_blocks, 3, 24).to(dtype)
    check(lambda x: pool_blocks(x, blocks), lambda x: pool_reference(x, blocks), [k], do, TOLERANCE[dtype])


@pytest.mark.pairwise
@each_dtype
@each_head_layout
@all_and_few_queries
@in_order_and_permuted
@pytest.mark.parametrize("biased", [False, True], ids=["no bias", "bias"])
def test_compression(biased, permuted, sparse, heads, dtype):
    blocks = odd_blocks(permuted=permuted, sparse=sparse)
    q, k, v, _, do = random_heads(blocks, heads, dtype)
    pooled = [pool_reference(x, blocks) for x in (k, v)]
    options = {"scale": 0.3, "block_bias": torch.randn(blocks.num_blocks) if biased else None}
    check(
        lambda *x: compression_attention(*x, blocks, **options)[0],
        lambda *x: compression_reference(*x, blocks, **options),
        [q, *pooled], do, TOLERANCE[dtype],
    )  # fmt: skip
    lse = compression_lse(q, pooled[0], blocks, **options)
    expected = compression_lse_reference(q.double(), pooled[0].double(), blocks, **options)
    assert torch.equal(lse.isinf(), expected.isinf()) and lse.isinf().any()
    torch.testing.assert_close(lse, expected.float(), atol=10 * TOLERANCE[dtype], rtol=0)


RULES = {
    "few": {"block_count": 2, "initial_blocks": 0, "local_blocks": 1},
    "forced": {"block_count": 3, "initial_blocks": 1, "local_blocks": 2},
    "nothing forced": {"block_count": 4, "local_blocks": 0},
    "everything": {"block_count": 9, "local_blocks": 1},
    "tokens": {"block_count": 5, "local_blocks": 1, "token_budget": 14},
    "fewer than forced": {"block_count": 1, "initial_blocks": 2, "local_blocks": 2},
}


@pytest.mark.pairwise
@pytest.mark.parametrize("query_tile", [1, 5])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@all_and_few_queries
@in_order_and_permuted
def test_topk(permuted, sparse, rule, query_tile):
    blocks = odd_blocks(permuted=permuted, sparse=sparse)
    q, k, _, _, _ = random_heads(blocks, (6, 2, 16), torch.float32)
    pooled_k, bias = pool_reference(k, blocks), torch.randn(blocks.num_blocks)
    leader = _leaders(blocks, query_tile) if query_tile > 1 else None
    options = {**rule, "scale": 0.5, "block_bias": bias, "leader": leader}
    with poisoned():
        chosen = choose_blocks(q, pooled_k, blocks, query_tile=query_tile, **options)
    expected = topk_reference(q.double(), pooled_k.double(), blocks, **options)
    assert torch.equal(chosen, expected)
    assert chosen.dtype == torch.int32 and (chosen >= 0).any()


def _leaders(blocks, size):
    """Tiles of `size` queries inside each sample."""
    first = torch.searchsorted(blocks.sample_start, blocks.sample_start)
    query = torch.arange(blocks.num_queries)
    return (query - (query - first) % size).int()


@pytest.mark.pairwise
@each_dtype
@each_head_layout
@all_and_few_queries
@in_order_and_permuted
def test_selection(permuted, sparse, heads, dtype):
    blocks = odd_blocks(permuted=permuted, sparse=sparse)
    q, k, v, _, do = random_heads(blocks, heads, dtype)
    chosen = topk_reference(q.double(), pool_reference(k.double(), blocks), blocks, scale=0.3, block_count=3)
    chosen[::5] = -1  # some queries choose nothing
    check(
        lambda *x: selection_attention(*x, chosen, blocks, scale=0.3),
        lambda *x: selection_reference(*x, chosen, blocks, scale=0.3),
        [q, k, v], do, TOLERANCE[dtype],
    )  # fmt: skip


@pytest.mark.parametrize("few_queries", [pytest.param(False, marks=pytest.mark.slow), True])
def test_selection_of_full_blocks_a_query_has_not_reached(few_queries):
    """Blocks as long as a tile need no mask of their own; queries that share a choice may stand before them."""
    bounds = torch.tensor([0, 64, 128])
    queries = torch.arange(0, 128, 3) if few_queries else None
    blocks = blocks_from_offsets(torch.arange(0, 129, 16), bounds, query_index=queries)
    q, k, v, _, do = random_heads(blocks, (2, 1, 16), torch.float32)
    first = blocks.first_block[:, None]
    chosen = (first + torch.tensor([[0, 2, 3]], dtype=torch.int32))[:, None].contiguous()
    check(
        lambda *x: selection_attention(*x, chosen, blocks, scale=0.3),
        lambda *x: selection_reference(*x, chosen, blocks, scale=0.3),
        [q, k, v], do, TOLERANCE[torch.float32],
    )  # fmt: skip


BAD_CHOICES = {
    "past the last block": (5, [4], r"chosen\[5, 0\] names block 4; there are blocks 0 to 3, and -1 for none"),
    "padded with the number of keys": (9, [0, 32], r"chosen\[9, 0\] names block 32; there are"),
    "below none": (0, [-2], r"chosen\[0, 0\] names block -2; there are"),
    "one block twice": (31, [2, -1, 2], r"chosen\[31, 0\] names block 2 twice"),
    "of the sample before": (16, [1, 2], r"chosen\[16, 0\] names block 1, which is of another sample"),
    "of the sample after": (15, [2], r"chosen\[15, 0\] names block 2, which is of another sample"),
}


@pytest.mark.parametrize("order", [None, [*range(15, -1, -1), *range(16, 32)]], ids=["plain", "permuted"])
@pytest.mark.parametrize("op", ["selection_attention", "video_nsa"])
@pytest.mark.parametrize(("query", "named", "said"), BAD_CHOICES.values(), ids=BAD_CHOICES)
def test_a_chosen_block_that_is_not_the_query_s_to_choose_is_refused(query, named, said, op, order, monkeypatch):
    if op == "video_nsa":
        monkeypatch.setattr("nsa_kernels.chosen.MOST_ENTRIES", 7)  # some queries at a time
    order = order if order is None else torch.tensor(order)
    blocks = blocks_from_offsets(torch.arange(0, 33, 8), torch.tensor([0, 16, 32]), order=order)
    q, k, v, _, _ = random_heads(blocks, (2, 1, 16), torch.float32)
    chosen = torch.full((32, 1, len(named)), -1, dtype=torch.int32)
    chosen[query, 0] = torch.tensor(named, dtype=torch.int32)
    with pytest.raises(ValueError, match=said):
        if op == "selection_attention":
            selection_attention(q, k, v, chosen, blocks)
        else:
            video_nsa(q, k, v, torch.ones(32, 2, 3), blocks, chosen=chosen, window=4)


@pytest.mark.parametrize("op", ["selection_attention", "video_nsa"])
def test_what_does_not_fit_is_ignored_on_request(op, monkeypatch):
    """As if it were not there, forward and backward, though numbers point at the ends of memory and of int32."""
    monkeypatch.setattr("nsa_kernels.chosen.MOST_ENTRIES", 50)
    blocks = blocks_from_offsets(torch.arange(0, 33, 8), torch.tensor([0, 16, 32]))
    q, k, v, gates, do = random_heads(blocks, (2, 1, 16), torch.float32)
    bad, good = (torch.full((32, 1, 6), -1, dtype=torch.int32) for _ in range(2))
    first = blocks.first_block[:, None]
    good[:, 0, 1:3] = first + torch.tensor([1, 0], dtype=torch.int32)
    bad[:, 0] = torch.tensor([2**31 - 1, 0, 0, 0, -(2**31), 4], dtype=torch.int32)
    bad[:, 0, 1:4] = first + torch.tensor([1, 0, 1], dtype=torch.int32)
    bad[:, 0, 5] = 3 - 2 * (first[:, 0] // 2)  # the last block of the other sample
    results = []
    for chosen, strict in ((good, True), (bad, False)):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        if op == "selection_attention":
            out = selection_attention(*leaves, chosen, blocks, strict=strict)
        else:
            out = video_nsa(*leaves, gates, blocks, chosen=chosen, window=4, strict=strict)
        results.append([out, *torch.autograd.grad(out, leaves, do)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    with pytest.raises(ValueError, match=r"chosen\[0, 0\] names block"):
        selection_attention(q, k, v, bad, blocks)


@pytest.mark.pairwise
@each_dtype
@each_head_layout
@all_and_few_queries
@in_order_and_permuted
@pytest.mark.parametrize("size", [1, 6, 4096])
def test_window(size, permuted, sparse, heads, dtype):
    blocks = odd_blocks(permuted=permuted, sparse=sparse)
    q, k, v, _, do = random_heads(blocks, heads, dtype)
    check(
        lambda *x: window_attention(*x, blocks, size=size, scale=0.3),
        lambda *x: window_reference(*x, blocks, size=size, scale=0.3),
        [q, k, v], do, TOLERANCE[dtype],
    )  # fmt: skip


@each_dtype
@pytest.mark.parametrize("count", [1, 2, 3])
def test_combine(count, dtype):
    outputs = [torch.randn(37, 7, 24).to(dtype) for _ in range(count)]
    gates, do = torch.rand(37, 7, count).to(dtype), torch.randn(37, 7, 24).to(dtype)
    check(
        lambda *x: combine_branches(x[:-1], x[-1]),
        lambda *x: combine_reference(list(x[:-1]), x[-1]),
        [*outputs, gates], do, TOLERANCE[dtype],
    )  # fmt: skip


@pytest.mark.parametrize("slots", [128, 0], ids=["slots", "gathered"])
def test_nothing_at_all(slots, monkeypatch):
    """No token, or no query: every op gives an empty output, and zero gradients."""
    monkeypatch.setattr("nsa_kernels.workspace.MOST_SLOTS", slots)
    for cu_seqlens, query_index in (([0, 0], None), ([0, 9], [])):
        index = None if query_index is None else torch.tensor(query_index, dtype=torch.int64)
        cu = torch.tensor(cu_seqlens)
        blocks = blocks_from_offsets(torch.tensor(sorted({0, *cu_seqlens})), cu, query_index=index)
        q, k, v, gates, _ = (x.requires_grad_() for x in random_heads(blocks, (4, 2, 16), torch.float32))
        pooled_k, pooled_v = pool_blocks(k, blocks), pool_blocks(v, blocks)
        chosen = choose_blocks(q, pooled_k, blocks, block_count=2)
        outputs = [
            compression_attention(q, pooled_k, pooled_v, blocks)[0],
            selection_attention(q, k, v, chosen, blocks),
            window_attention(q, k, v, blocks, size=3),
        ]
        out = combine_branches(outputs, gates)
        assert out.shape == (0, 4, 16) and chosen.shape == (0, 2, 2)
        for x, grad in zip((q, k, v), torch.autograd.grad(out.sum(), (q, k, v)), strict=True):
            assert grad.shape == x.shape and (grad == 0).all()


@pytest.mark.parametrize("named", [[4, 3], [0, -1], [6, 32], [15, 12], [6, 5]], ids=str)
def test_a_leader_that_leads_no_run_of_its_sample_chooses_nothing(named):
    blocks = uniform_blocks(torch.tensor([0, 15, 32]), 2)
    q, k, _, _, _ = random_heads(blocks, (2, 1, 16), torch.float32)
    pooled_k, leader = pool_blocks(k, blocks), _leaders(blocks, 4)
    follower, leader[named[0]] = named[0], named[1]
    with poisoned():
        chosen = choose_blocks(q, pooled_k, blocks, query_tile=4, leader=leader, block_count=3)
    assert (chosen[follower] == -1).all()
    first = blocks.first_block[:, None, None]
    assert ((chosen == -1) | ((chosen >= first) & (chosen <= blocks.last_block[:, None, None] + 2))).all()


def test_uniform_blocks_restart_with_each_sample():
    blocks = uniform_blocks(torch.tensor([0, 1, 10, 10, 18]), 4)
    assert blocks.offsets.tolist() == [0, 1, 5, 9, 10, 14, 18]
    with pytest.raises(ValueError, match="crosses two samples"):
        blocks_from_offsets(torch.tensor([0, 4, 8]), torch.tensor([0, 5, 8]))
    with pytest.raises(ValueError, match="empty"):
        blocks_from_offsets(torch.tensor([0, 4, 4, 8]), torch.tensor([0, 8]))
    for size in (0, -4):
        with pytest.raises(ValueError, match="not positive"):
            uniform_blocks(torch.tensor([0, 8]), size)


@pytest.mark.parametrize("bounds", [[1, 8], [0, 5, 3, 8], [0, 8, -1]])
def test_sample_bounds_that_do_not_ascend_from_zero_are_refused(bounds):
    with pytest.raises(ValueError, match="cu_seqlens must ascend from 0"):
        blocks_from_offsets(torch.tensor([0, 3, 5, 8]), torch.tensor(bounds))


@pytest.mark.parametrize(
    ("offsets", "given", "said"),
    [
        ([0, 4, 5, 9], {}, "must go from 0 to the number of keys"),
        ([1, 5, 8], {}, "must go from 0"),
        ([0], {}, "name no block, but there are 8 keys"),
        ([0, 5, 8], {"query_index": [2, 1]}, "query_index must ascend"),
        ([0, 5, 8], {"query_index": [2, 2]}, "query_index must ascend"),
        ([0, 5, 8], {"order": [0, 1, 2, 3, 5, 4, 6, 7]}, "order must be a permutation of each sample"),
        ([0, 5, 8], {"order": [0, 1, 2, 3, 3, 5, 6, 7]}, "order must be a permutation of each sample"),
        ([0, 5, 8], {"query_index": [-1, 2]}, "query_index names a key outside of 0 to 7"),
        ([0, 5, 8], {"order": [0, 1, 2, 3, 8, 5, 6, 7]}, "order names a key outside of 0 to 7"),
        ([0, 5, 8], {"order": [0, 1, 2]}, r"order must be \[8\], not \[3\]"),
        ([0, 5, 8], {"end": [5, 7]}, "end must lie inside the block's sample"),
        ([0, 5, 8], {"start": [5]}, r"start must be \[2\], not \[1\]"),
    ],
)
def test_geometry_that_does_not_fit_is_refused(offsets, given, said):
    given = {name: torch.tensor(values) for name, values in given.items()}
    with pytest.raises(ValueError, match=said):
        blocks_from_offsets(torch.tensor(offsets), torch.tensor([0, 5, 8]), **given)


def test_a_leader_may_be_strided():
    blocks = uniform_blocks(torch.tensor([0, 64]), 4)
    q, k, *_ = random_heads(blocks, (2, 1, 16), torch.float32)
    leader = (torch.arange(64) // 8 * 8).int()
    strided = leader.repeat_interleave(2)[::2]
    assert torch.equal(strided, leader) and not strided.is_contiguous()
    pooled = pool_blocks(k, blocks)
    found = [choose_blocks(q, pooled, blocks, block_count=4, query_tile=8, leader=x) for x in (leader, strided)]
    assert torch.equal(*found)


def test_one_thread_s_compiling_leaves_the_kernels_of_another_running():
    """While a thread compiles, `launch` in another thread runs its kernel."""
    ran, warmed = [], []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *args, **options: ran.append(grid)

        def warmup(self, *args, grid, **options):
            warmed.append(grid)

    with runtime.compiling():
        runtime.launch(Kernel(), (1,), torch.zeros(1))
        other = threading.Thread(target=runtime.launch, args=(Kernel(), (2,), torch.zeros(1)))
        other.start()
        other.join()
    assert (warmed, ran) == ([(1,)], [(2,)])
