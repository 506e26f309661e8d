"""The torch path against the reference, forward and backward, on odd sizes; and both against plain dense attention."""

import pytest
import torch

from nsa_lab.attention import block_major, groups
from nsa_lab.attention.backends import BACKENDS
from nsa_lab.attention.block_major import selection_by_block
from nsa_lab.attention.compressors import COMPRESSORS, mean_of_blocks
from nsa_lab.attention.dims import HeadDims
from nsa_lab.partition import PARTITIONERS, PartitionConfig, full_context, sparse_context, text_context
from nsa_testing import (
    ODD_SHAPES,
    assert_close,
    block_rule,
    compression_scorer,
    make_partition,
    random_heads,
    token_layout,
)

SCORER = compression_scorer()
reference, torch_path = (BACKENDS["reference"], BACKENDS["torch"])

HEADS = {"group of 1": (4, 4, 16), "group of 2": (4, 2, 16), "group of 7": (7, 1, 16)}
PAIRS = {name: (torch.float64, heads) for name, heads in HEADS.items()}
PAIRS["float32"] = (torch.float32, HEADS["group of 7"])
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}
RULE = block_rule(block_count=3, initial_blocks=1, local_blocks=1)


@pytest.fixture(params=["one piece", "many pieces"])
def pieces(request, monkeypatch):
    """Runs both ways through the work: everything at once, and cut into pieces of at least 16 rows."""
    if request.param == "many pieces":
        monkeypatch.setattr(groups, "PIECE_BYTES", 2000)
        monkeypatch.setattr(groups, "MIN_ROWS", 5)
        monkeypatch.setattr(block_major, "VISIT_ROWS", 8)


def check(actual, expected, heads, tolerance):
    assert_close(actual, expected, tolerance, "out")
    weight = torch.randn(expected.shape, dtype=expected.dtype, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad((actual * weight).sum(), heads.all, retain_graph=True)
    wanted = torch.autograd.grad((expected * weight).sum(), heads.all, retain_graph=True)
    for name, grad, reference_grad in zip(("dq", "dk", "dv"), found, wanted, strict=True):
        assert_close(grad, reference_grad, 10 * tolerance, name)


def masked_attention(q, k, v, seen, scale):
    """q [Tq, H, D] against the keys that seen [Tq, T] lets each query read; zero where there are none."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    logits = torch.einsum("qhd,khd->hqk", q, k) * scale
    weights = logits.masked_fill(~seen, torch.finfo(q.dtype).min).softmax(-1) * seen.any(1)[:, None]
    return torch.einsum("hqk,khd->qhd", weights, v)


@pytest.mark.pairwise
@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize(("dtype", "heads"), PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize(("context", "block_size"), [("video", 4), ("all", 7), ("all", 64), ("video", 1)])
@pytest.mark.parametrize("partition", PARTITIONERS)
def test_ops_equal_the_reference(dtype, heads, context, partition, block_size):
    tokens = sparse_context(token_layout(ODD_SHAPES), context)
    blocks = make_partition(partition, tokens, block_size)
    random = random_heads(len(tokens.query_index), len(tokens.token_index), heads, dtype)
    q, k, v = random.all
    pooled = mean_of_blocks(k, blocks), mean_of_blocks(v, blocks)
    scale, tolerance = heads[2] ** -0.5, TOLERANCE[dtype]
    bias = blocks.lengths.to(dtype).log()
    chosen = [
        ops.select_blocks(q, pooled[0], tokens, blocks, scale=scale, scorer=SCORER, rule=RULE)
        for ops in (reference, torch_path)
    ]
    if dtype == torch.float64:
        assert torch.equal(*chosen)
    for args, kwargs, op in [
        ((q, *pooled, tokens, blocks), {"block_bias": bias}, "compression"),
        ((q, *pooled, tokens, blocks), {}, "compression"),
        ((q, k, v, chosen[0], tokens, blocks), {}, "selection"),
        ((q, k, v, tokens), {"size": 5}, "window"),
        ((q, k, v, tokens), {"size": 1000}, "window"),
        ((q, k, v, tokens), {}, "dense"),
    ]:
        expected, actual = (getattr(ops, op)(*args, scale=scale, **kwargs) for ops in (reference, torch_path))
        check(actual, expected, random, tolerance)
    check(
        selection_by_block(q, k, v, chosen[0], tokens, blocks, scale),
        reference.selection(q, k, v, chosen[0], tokens, blocks, scale=scale),
        random,
        tolerance,
    )


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("make_context", [full_context, text_context])
def test_dense_rows_equal_the_reference(make_context):
    tokens = make_context(token_layout(ODD_SHAPES))
    random = random_heads(len(tokens.query_index), len(tokens.token_index), (4, 2, 16), torch.float64)
    expected, actual = (ops.dense(*random.all, tokens, scale=0.25) for ops in (reference, torch_path))
    check(actual, expected, random, 1e-12)


@pytest.mark.parametrize(
    "rule",
    [block_rule(1, 0, 1), block_rule(2, 1, 1), block_rule(2, 0, 0), block_rule(3, 0, 2), block_rule(50, 0, 1)],
)
def test_forced_blocks_and_counts(rule):
    tokens = sparse_context(token_layout([(2, (6, 2, 4), 1), (0, (3, 2, 2), 1)]), "video")
    blocks = make_partition("uniform", tokens, 8)
    q, k, _ = random_heads(len(tokens.query_index), len(tokens.token_index), (4, 2, 16), torch.float64).all
    pooled = mean_of_blocks(k, blocks)
    chosen = [
        ops.select_blocks(q, pooled, tokens, blocks, scale=0.25, scorer=SCORER, rule=rule)
        for ops in (reference, torch_path)
    ]
    assert torch.equal(*chosen)
    own = blocks.block_id[tokens.query_index]
    if rule.local_blocks:
        assert (chosen[0] == own[:, None, None]).any(-1).all()
    assert (chosen[0] >= 0).sum(-1).max() <= rule.block_count
    first = blocks.cu_blocks[:-1].repeat_interleave(tokens.query_cu_seqlens.diff())
    if rule.initial_blocks and rule.block_count > 1:
        assert (chosen[0] == first[:, None, None]).any(-1).all()


def test_nothing_to_see_is_zero_and_takes_no_gradient():
    """Early queries have no closed block; without forced blocks they have nothing to select either."""
    tokens = sparse_context(token_layout([(1, (4, 2, 2), 1)]), "video")
    blocks = make_partition("uniform", tokens, 8)
    random = random_heads(16, 16, (4, 2, 16), torch.float64)
    q, k, v = random.all
    pooled = mean_of_blocks(k, blocks), mean_of_blocks(v, blocks)
    rule = block_rule(2, 0, 0)
    for ops in (reference, torch_path):
        chosen = ops.select_blocks(q, pooled[0], tokens, blocks, scale=1.0, scorer=SCORER, rule=rule)
        outs = [
            ops.compression(q, *pooled, tokens, blocks, scale=1.0),
            ops.selection(q, k, v, chosen, tokens, blocks, scale=1.0),
        ]
        for out in outs:
            assert (out[:7] == 0).all() and (out[7:] != 0).any()
            grads = torch.autograd.grad(out.sum(), random.all, retain_graph=True)
            assert all(torch.isfinite(grad).all() for grad in grads)
            assert (grads[0][:7] == 0).all()
    out = selection_by_block(q, k, v, chosen, tokens, blocks, 1.0)
    assert (out[:7] == 0).all() and torch.isfinite(torch.autograd.grad(out.sum(), q)[0]).all()


@pytest.mark.parametrize("ops", [reference, torch_path])
@pytest.mark.parametrize("partition", PARTITIONERS)
def test_a_budget_that_covers_everything_reads_every_block_that_may_be_read(ops, partition):
    """Closed blocks and the query's own: all there is, and so dense attention, where blocks follow packed order."""
    tokens = sparse_context(token_layout(ODD_SHAPES), "video")
    blocks = make_partition(partition, tokens, 4)
    random = random_heads(len(tokens.query_index), len(tokens.token_index), (4, 2, 16), torch.float64)
    q, k, v = random.all
    rule = block_rule(blocks.num_blocks)
    chosen = ops.select_blocks(q, mean_of_blocks(k, blocks), tokens, blocks, scale=0.25, scorer=SCORER, rule=rule)
    dense = reference.dense(q, k, v, tokens, scale=0.25)
    place, key = tokens.query_index[:, None], torch.arange(len(k))
    sample = torch.bucketize(key, tokens.cu_seqlens[1:-1], right=True)
    own = blocks.block_id == blocks.block_id[place]
    open_to = (blocks.block_end[blocks.block_id] <= place) | (own & (blocks.block_start[blocks.block_id] <= place))
    seen = open_to & (key <= place) & (sample == sample[place])
    if partition in ("uniform", "frame", "shifted"):
        assert torch.equal(seen, (key <= place) & (sample == sample[place]))
    expected = masked_attention(q, k, v, seen, 0.25)
    check(ops.selection(q, k, v, chosen, tokens, blocks, scale=0.25), expected, random, 1e-12)
    check(ops.window(q, k, v, tokens, size=1000, scale=0.25), dense, random, 1e-12)


def test_in_long_samples_blocks_are_visited_with_the_same_result(monkeypatch):
    """Past VISITS_COST the torch path changes its algorithm, not its answer."""
    tokens = sparse_context(token_layout([(0, (50, 2, 2), 3)]), "video")
    blocks = make_partition("uniform", tokens, 4)
    random = random_heads(200, 200, (4, 2, 16), torch.float64)
    q, k, v = random.all
    chosen = torch_path.select_blocks(
        q, mean_of_blocks(k, blocks), tokens, blocks, scale=0.25, scorer=SCORER, rule=block_rule(3)
    )
    expected = reference.selection(q, k, v, chosen, tokens, blocks, scale=0.25)
    visited = []
    module = "nsa_lab.attention.backends.torch_path"
    monkeypatch.setattr(f"{module}.selection_by_block", lambda *args: visited.append(1) or selection_by_block(*args))
    monkeypatch.setattr(f"{module}.VISIT_PER_MASK", 1)
    for cost, visits in ((1, 1), (10**9, 0)):
        monkeypatch.setattr(f"{module}.VISITS_COST", cost)
        visited.clear()
        check(torch_path.selection(q, k, v, chosen, tokens, blocks, scale=0.25), expected, random, 1e-12)
        assert len(visited) == visits


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("way", ["masked", "visited", "reference"])
def test_blocks_of_nobody_are_not_read(way, monkeypatch):
    """A block of another sample, one past the last, another negative number than -1, or one that is repeated."""
    monkeypatch.setattr("nsa_lab.attention.backends.torch_path.VISITS_COST", -(10**9) if way == "visited" else 10**9)
    ops = reference if way == "reference" else torch_path
    tokens = sparse_context(token_layout([(1, (3, 2, 2), 1), (0, (4, 2, 2), 2), (0, (2, 2, 2), 0)]), "video")
    blocks = make_partition("uniform", tokens, 4)
    random = random_heads(36, 36, (4, 2, 16), torch.float64)
    first = blocks.cu_blocks[:-1].repeat_interleave(tokens.query_cu_seqlens.diff())[:, None, None]
    past = blocks.cu_blocks[1:].repeat_interleave(tokens.query_cu_seqlens.diff())[:, None, None]
    good = (first + torch.tensor([1, 0, -100])).clamp(min=-1).expand(-1, 2, -1)
    bad = torch.cat([past, first + 1, first, first + 1, first - 1, -2 + 0 * first, 10**12 + first], 2).expand(-1, 2, -1)
    expected = reference.selection(*random.all, good, tokens, blocks, scale=0.25)
    check(ops.selection(*random.all, bad, tokens, blocks, scale=0.25), expected, random, 1e-12)
    none = ops.selection(*random.all, past.expand(-1, 2, -1), tokens, blocks, scale=0.25)
    assert not none.any()


def test_low_precision_error_is_that_of_the_dtype():
    tokens = sparse_context(token_layout([(0, (40, 2, 4), 3)]), "video")
    blocks = make_partition("uniform", tokens, 8)
    exact = random_heads(320, 320, (4, 2, 32), torch.float64)
    q, k, v = (x.detach().bfloat16() for x in exact.all)
    chosen = torch_path.select_blocks(
        q.double(), mean_of_blocks(k.double(), blocks), tokens, blocks, scale=0.2, scorer=SCORER, rule=RULE
    )
    low = (q, k, v)
    wide = tuple(x.double() for x in low)
    for op, args in (("selection", (chosen, tokens, blocks)), ("dense", (tokens,))):
        assert_close(
            getattr(torch_path, op)(*low, *args, scale=0.2),
            getattr(reference, op)(*wide, *args, scale=0.2),
            1e-2,
            op,
        )


@pytest.mark.parametrize("kind", COMPRESSORS)
@pytest.mark.parametrize("partition", PARTITIONERS)
def test_compressors_start_as_the_mean_of_each_block(kind, partition):
    tokens = sparse_context(token_layout(ODD_SHAPES), "video")
    blocks = make_partition(partition, tokens, 7)
    k = random_heads(1, len(tokens.token_index), (2, 2, 16), torch.float64).k
    longest = PARTITIONERS[partition].longest(PartitionConfig(kind=partition, block_size=7))
    dims = HeadDims(hidden_size=32, num_heads=2, num_kv_heads=2, head_dim=16)
    compressor = COMPRESSORS[kind](COMPRESSORS[kind].Config(), dims, longest).double()
    pooled, _ = compressor(k, k, blocks)
    for block in range(blocks.num_blocks):
        members = blocks.members[block][blocks.members[block] >= 0]
        torch.testing.assert_close(pooled[block], k[members].mean(0))
    pooled.square().sum().backward()
    assert torch.isfinite(k.grad).all() and (k.grad != 0).any()
