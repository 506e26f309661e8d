"""The Triton path against the reference, in Triton's interpreter: every op, and the whole layer fused."""

import os
import sys
import types
from functools import partial

import pytest
import torch

from nsa_kernels import video_nsa
from nsa_lab.attention.backends import BACKENDS, choose_backend
from nsa_lab.attention.backends.triton_path import kernel_blocks
from nsa_lab.attention.choice import Scorer
from nsa_lab.attention.compressors import mean_of_blocks
from nsa_lab.attention.dims import HeadDims
from nsa_lab.attention.trace import Trace
from nsa_lab.config import load_config
from nsa_lab.errors import NsaLabError
from nsa_lab.partition import PARTITIONERS, full_context, partition_from_block_id, sparse_context, text_context
from nsa_testing import (
    assert_close,
    block_rule,
    compression_scorer,
    gated_branches,
    make_partition,
    random_heads,
    token_layout,
)

SCORER = compression_scorer()
fla_path, reference, triton_path = (BACKENDS["fla"], BACKENDS["reference"], BACKENDS["triton"])

pytestmark = [
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

SHAPES = ((3, (3, 3, 2), 2), (0, (1, 1, 1), 2), (5, (0, 0, 0), 0), (2, (2, 1, 3), 1))
DIMS = HeadDims(hidden_size=32, num_heads=4, num_kv_heads=2, head_dim=16)


def interleaved(tokens):
    """Permuted blocks: inside each sample the tokens are dealt out to blocks of about three."""
    ids, begin = [], 0
    for a, b in zip(tokens.cu_seqlens[:-1].tolist(), tokens.cu_seqlens[1:].tolist(), strict=True):
        count = max(1, (b - a) // 3) if b > a else 0
        ids += [begin + i % count for i in range(b - a)]
        begin += count
    return partition_from_block_id(torch.tensor(ids), tokens.cu_seqlens, "token")


MAKERS = {kind: partial(make_partition, kind, block_size=4) for kind in PARTITIONERS} | {"interleaved": interleaved}


def check(op, args, heads, **options):
    expected, actual = (getattr(ops, op)(*args, **options) for ops in (reference, triton_path))
    assert_close(actual, expected, 2e-6, op)
    weight = torch.randn(expected.shape)
    wanted, found = (
        torch.autograd.grad((x * weight).sum(), heads, retain_graph=True, allow_unused=True, materialize_grads=True)
        for x in (expected, actual)
    )
    for name, grad, want in zip(("dq", "dk", "dv"), found, wanted, strict=True):
        assert_close(grad, want, 2e-5, f"{op} {name}")


RULES = {
    "few": block_rule(3, 1, 1),
    "few, tiles": block_rule(3, 0, 2, query_tile=4),
    "nothing forced": block_rule(2, 0, 0),
    "tokens": block_rule(3, 1, 1, "token_budget", 9),
    "tokens, tiles": block_rule(4, 0, 1, "token_budget", 12, query_tile=4),
}
each_maker = pytest.mark.parametrize("maker", MAKERS)
each_context = pytest.mark.parametrize("context", ["video", "all"])


def make(maker, context):
    """Tokens of SHAPES, their blocks, and q, k, v of two groups of two heads."""
    tokens = sparse_context(token_layout(SHAPES), context)
    heads = random_heads(len(tokens.query_index), len(tokens.token_index), (4, 2, 16), torch.float32)
    return tokens, MAKERS[maker](tokens), heads.all


def choose(ops, rule, q, k, tokens, blocks):
    options = {"scorer": SCORER, "rule": rule, "block_bias": blocks.lengths.float().log()}
    return ops.select_blocks(q, mean_of_blocks(k, blocks), tokens, blocks, scale=0.25, **options)


@pytest.mark.singly
@each_context
@each_maker
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_choices_equal_the_reference(rule, maker, context):
    tokens, blocks, (q, k, _) = make(maker, context)
    expected, found = (choose(ops, rule, q, k, tokens, blocks) for ops in (reference, triton_path))
    assert torch.equal(expected, found)


@pytest.mark.singly
@each_context
@each_maker
@pytest.mark.parametrize("op", ["compression", "selection"])
def test_ops_equal_the_reference(op, maker, context):
    tokens, blocks, heads = make(maker, context)
    q, k, v = heads
    if op == "compression":
        pooled = mean_of_blocks(k, blocks), mean_of_blocks(v, blocks)
        check(op, (q, *pooled, tokens, blocks), heads, scale=0.25, block_bias=blocks.lengths.float().log())
    else:
        chosen = choose(reference, RULES["tokens, tiles"], q, k, tokens, blocks)
        check(op, (q, k, v, chosen, tokens, blocks), heads, scale=0.25)


@each_context
def test_the_window_equals_the_reference(context):
    tokens, _, heads = make("uniform", context)
    check("window", (*heads, tokens), heads, size=5, scale=0.25)


def test_the_geometry_of_blocks_is_made_once():
    tokens, blocks, _ = make("uniform", "video")
    assert kernel_blocks(tokens, blocks) is kernel_blocks(tokens, blocks)


@pytest.mark.parametrize("make_context", [full_context, text_context])
def test_dense_rows_equal_the_reference(make_context):
    tokens = make_context(token_layout(SHAPES))
    heads = random_heads(len(tokens.query_index), len(tokens.token_index), (4, 2, 16), torch.float32).all
    check("dense", (*heads, tokens), heads, scale=0.25)


DESIGNS = {
    "paper": [],
    "mlp, log n": ["attention.compressor.kind=mlp", "attention.branches.compression.log_length_bias=true"],
    "query tiles": ["attention.branches.selection.query_tile=3", "attention.branches.selection.block_count=3"],
    "no compression": ["attention.branches.compression.enabled=false"],
    "window alone": ["attention.branches.compression.enabled=false", "attention.branches.selection.enabled=false"],
}


def build(backend, *overrides):
    base = ["tasks.needle.enabled=true", "attention.partition.block_size=4", "attention.branches.window.size=5"]
    base += ["attention.branches.selection.block_count=2", f"attention.backend={backend}"]
    config = load_config(None, [*base, *overrides]).attention
    torch.manual_seed(0)
    layer = gated_branches(config, DIMS)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer


@pytest.mark.parametrize(
    "fused", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["fused", "branch by branch"]
)
@pytest.mark.parametrize("overrides", DESIGNS.values(), ids=DESIGNS)
def test_the_whole_layer_equals_the_reference(overrides, fused, monkeypatch):
    tokens = sparse_context(token_layout(SHAPES), "video")
    blocks = make_partition("frame", tokens, 4)
    calls = []
    fused_op = triton_path.video_nsa
    monkeypatch.setattr(triton_path, "fused", fused)
    monkeypatch.setattr(triton_path, "video_nsa", lambda *a, **o: calls.append(1) or fused_op(*a, **o))
    results = []
    for backend in ("reference", "triton"):
        layer = build(backend, *overrides)
        trace = Trace("choice", "cost")
        x = torch.randn(len(tokens.query_index), 32, generator=torch.Generator().manual_seed(1), requires_grad=True)
        heads = random_heads(len(x), len(x), (4, 2, 16), torch.float32).all
        out = layer(x, *heads, tokens, blocks, trace)
        leaves = [x, *heads, *layer.parameters()]
        grads = torch.autograd.grad(out.square().sum(), leaves, allow_unused=True, materialize_grads=True)
        results.append((out, grads, trace))
    (out, grads, trace), (found, found_grads, found_trace) = results
    assert len(calls) == fused
    assert_close(found, out, 2e-6)
    for grad, want in zip(found_grads, grads, strict=True):
        assert_close(grad, want, 2e-5)
    assert found_trace.of("cost") == trace.of("cost")
    for layer, choice in trace.of("choice").items():
        assert torch.equal(found_trace.of("choice")[layer], choice)


class Newest(Scorer):
    """The later a block, the better."""

    def forward(self, x, q, pooled_k, visible, block_bias, scale):
        scores = torch.arange(pooled_k.shape[1], dtype=torch.float32)
        return scores.expand(*q.shape[:3], -1)


def test_a_scorer_without_a_kernel_chooses_in_pytorch_for_the_fused_call(caplog, monkeypatch):
    tokens = sparse_context(token_layout(SHAPES), "video")
    blocks = make_partition("uniform", tokens, 4)
    scorer = Newest(Newest.Config(), DIMS)
    x = torch.randn(len(tokens.query_index), 32)
    q, k, v = random_heads(len(tokens.query_index), len(tokens.token_index), (4, 2, 16), torch.float32).all
    with caplog.at_level("INFO"):
        for _ in range(2):
            chosen = triton_path.select_blocks(
                q, mean_of_blocks(k, blocks), tokens, blocks, scale=1.0, scorer=scorer, rule=block_rule(2, 0, 1)
            )
    assert chosen[17, 0].tolist() == [3, 4]
    said = "no Triton kernel chooses blocks by Newest and TopN: the choice is made in PyTorch"
    assert [r.message for r in caplog.records] == [said]
    found = []
    for backend in ("reference", "triton"):
        layer, trace = build(backend), Trace("choice", "cost")
        layer.branches["selection"].scorer = scorer
        fused_op, given = triton_path.video_nsa, []
        with monkeypatch.context() as patch:
            patch.setattr(triton_path, "video_nsa", lambda *a, **o: given.append(o["chosen"]) or fused_op(*a, **o))  # noqa: B023
            out = layer(x, q, k, v, tokens, blocks, trace)
        assert [choice is not None for choice in given] == [True] * (backend == "triton")
        found.append((out, trace.of("choice")[0]))
    assert torch.equal(found[0][1], found[1][1])
    assert_close(found[1][0], found[0][0], 2e-6)


def test_triton_runs_on_a_cpu_only_when_named():
    cpu = torch.device("cpu")
    assert choose_backend("auto", cpu) == "torch"
    assert choose_backend("triton", cpu) == "triton"
    assert BACKENDS["triton"].why_not(cpu, named=False)


FLA = [
    "attention.partition.block_size=64", "attention.branches.selection.block_count=32",
    "attention.branches.selection.initial_blocks=1", "attention.branches.selection.local_blocks=2",
]  # fmt: skip
BROKEN = {
    "attention.branches.compression.enabled=false": "it needs branches.compression and branches.selection",
    "attention.partition.kind=frame": "partition.kind=uniform",
    "attention.context=all": "context=video",
    "attention.compressor.kind=mlp": "compressor.kind=mean",
    "attention.branches.compression.log_length_bias=true": "no log_length_bias",
    "attention.branches.selection.initial_blocks=0": "initial_blocks=1",
    "attention.branches.selection.local_blocks=1": "local_blocks=2",
    "attention.branches.selection.query_tile=8": "query_tile=1",
    "attention.partition.block_size=48": "power of two",
    "attention.branches.selection.block_count=33": "at least twice block_count",
}


@pytest.mark.parametrize("override", BROKEN)
def test_fla_names_the_rule_that_a_design_breaks(override):
    with pytest.raises(NsaLabError, match=f"attention.backend=fla does not run this design: .*{BROKEN[override]}"):
        build("fla", *FLA, override)


def test_fla_takes_its_design_and_only_by_name():
    assert build("fla", *FLA).fusible
    assert fla_path.why_not(torch.device("cuda"), named=False) == "it is for comparison, name it to use it"
    with pytest.raises(NsaLabError, match="it needs a CUDA device"):
        choose_backend("fla", torch.device("cpu"))


@pytest.mark.parametrize(("heads", "window"), [((7, 1, 16), 5), pytest.param((4, 2, 16), 0, marks=pytest.mark.slow)])
def test_fla_is_called_with_padded_groups(heads, window, monkeypatch):
    """A stand-in with parallel_nsa's signature and rules; the true one runs in tests/kernels/test_gpu.py."""

    def parallel_nsa(q, k, v, g_cmp, g_slc, block_counts, block_size, window_size, scale, cu_seqlens):
        width = q.shape[2] // k.shape[2]
        assert q.shape[0] == 1 and width >= 16 and width & (width - 1) == 0 and window_size == 0
        assert (
            block_size >= 2 * block_counts
            and q[0].unflatten(1, (k.shape[2], width))[:, :, heads[0] // heads[1] :].eq(0).all()
        )
        gates = torch.stack([g_cmp[0], g_slc[0]], -1)
        return video_nsa(
            q[0], k[0], v[0], gates, kernel_blocks(tokens, blocks), branches=("compression", "selection"),
            block_count=block_counts, initial_blocks=1, local_blocks=2, scale=scale,
        )[None]  # fmt: skip

    module = types.ModuleType("fla.ops.nsa")
    module.parallel_nsa = parallel_nsa
    monkeypatch.setitem(sys.modules, "fla.ops.nsa", module)
    tokens = sparse_context(token_layout([(1, (4, 3, 3), 2), (0, (1, 1, 3), 1)]), "video")
    blocks = make_partition("uniform", tokens, 16)
    q, k, v = random_heads(39, 39, heads, torch.float32).all
    branches = ("compression", "selection", "window")[: 3 if window else 2]
    gates = torch.rand(39, heads[0], len(branches))
    options = {
        "branches": branches, "rule": block_rule(3, 1, 2), "window_size": window or 1, "pooled": None,
        "block_bias": None, "scale": 0.25,
    }  # fmt: skip
    results = [m.video_nsa(q, k, v, gates, tokens, blocks, **options)[0] for m in (fla_path, triton_path)]
    assert_close(*results, 2e-6)
    with pytest.raises(NsaLabError, match="several videos"):
        fla_path.video_nsa(q, k, v, gates, tokens, make_partition("frame", tokens, 16), **options)
