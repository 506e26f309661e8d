"""Some rows of a sample against the keys and values of all: what several processes compute adds up to the whole."""

import os
from dataclasses import replace

import pytest
import torch

from nsa_lab.attention.backends import BACKENDS
from nsa_lab.attention.dims import HeadDims
from nsa_lab.attention.trace import Trace
from nsa_lab.config import load_config
from nsa_lab.model.context_parallel import row_owners
from nsa_lab.partition import full_context, sparse_context, text_context
from nsa_testing import assert_close, gated_branches, make_partition, random_heads, token_layout

pytestmark = [pytest.mark.filterwarnings("ignore::RuntimeWarning")]

interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1")
each_backend = pytest.mark.parametrize("backend", ["torch", pytest.param("triton", marks=interpreted)])

SHAPES = ((3, (4, 3, 2), 2), (0, (1, 1, 1), 2), (5, (0, 0, 0), 0), (2, (3, 1, 3), 1))
DIMS = HeadDims(hidden_size=32, num_heads=4, num_kv_heads=2, head_dim=16)
DESIGNS = {
    "paper": {},
    "tiles of blocks, all keys": {"partition.kind": "tile", "context": "all"},
    "query tiles": {"branches.selection.query_tile": 3, "branches.selection.block_count": 3},
    "no compression": {"branches.compression.enabled": False},
    "mlp": {"compressor.kind": "mlp"},
}


def design_of(backend, **overrides):
    small = {"partition.block_size": 4, "branches.window.size": 5, "branches.selection.block_count": 2}
    settings = {f"attention.{key}": value for key, value in (small | overrides | {"backend": backend}).items()}
    return load_config(None, settings | {"tasks.needle.enabled": True}).attention


def shares(layout, size, tile=1):
    owner = row_owners(layout, size, tile)
    return [replace(layout, own=(owner == place).nonzero().flatten()) for place in range(size)]


def differentiate(out, weight, leaves):
    return torch.autograd.grad((out * weight).sum(), leaves, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("overrides", DESIGNS.values(), ids=DESIGNS)
def test_the_sparse_layer_of_shares_is_that_of_all_rows(overrides, size):
    check_layer(design_of("torch", **overrides), size, SHAPES)


@interpreted
def test_the_fused_layer_of_shares_is_that_of_all_rows():
    check_layer(design_of("triton"), 2, [(1, (3, 3, 1), 2)])


@pytest.mark.slow
@interpreted
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("overrides", DESIGNS.values(), ids=DESIGNS)
def test_any_fused_layer_of_shares_is_that_of_all_rows(overrides, size):
    check_layer(design_of("triton", **overrides), size, SHAPES)


def check_layer(design, size, shapes):
    whole = token_layout(shapes)
    torch.manual_seed(0)
    layer = gated_branches(design, DIMS)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens = sparse_context(whole, design.context)
    blocks = make_partition(design.partition.kind, tokens, 4)
    heads = random_heads(len(tokens.query_index), len(tokens.token_index), (4, 2, 16), torch.float32)
    x = torch.randn(len(heads.q), 32, requires_grad=True)
    leaves = [x, *heads.all, *layer.parameters()]
    trace = Trace("choice")
    expected = layer(x, *heads.all, tokens, blocks, trace)
    weight = torch.randn_like(expected)
    wanted = differentiate(expected, weight, leaves)
    found, summed, seen = torch.zeros_like(expected), [torch.zeros_like(grad) for grad in wanted], 0
    for own in shares(whole, size, design.branches.selection.query_tile):
        part, own_trace = sparse_context(own, design.context), Trace("choice")
        rows = torch.isin(whole.video_index, own.own).nonzero().flatten()
        out = layer(x[rows], heads.q[rows], heads.k, heads.v, part, blocks, own_trace)
        found[rows] = out.detach()
        seen += len(rows)
        for total, grad in zip(summed, differentiate(out, weight[rows], leaves), strict=True):
            total += grad
        for number, choice in own_trace.of("choice").items():
            assert torch.equal(choice, trace.of("choice")[number][rows])
    assert seen == len(expected)
    assert_close(found, expected, 2e-6)
    for grad, want in zip(summed, wanted, strict=True):
        assert_close(grad, want, 2e-5)


@each_backend
@pytest.mark.parametrize("make_context", [full_context, text_context])
def test_the_dense_rows_of_shares_are_all_dense_rows(make_context, backend):
    whole = token_layout(SHAPES)
    tokens = make_context(whole)
    heads = random_heads(len(tokens.query_index), len(tokens.token_index), (4, 2, 16), torch.float32)
    expected = BACKENDS[backend].dense(*heads.all, tokens, scale=0.25)
    weight = torch.randn_like(expected)
    wanted = differentiate(expected, weight, heads.all)
    summed = [torch.zeros_like(grad) for grad in wanted]
    for own in shares(whole, 2):
        part = make_context(own)
        rows = torch.searchsorted(tokens.query_index, part.query_index)
        out = BACKENDS[backend].dense(heads.q[rows], heads.k, heads.v, part, scale=0.25)
        assert_close(out, expected[rows], 2e-6)
        for total, grad in zip(summed, differentiate(out, weight[rows], heads.all), strict=True):
            total += grad
    for grad, want in zip(summed, wanted, strict=True):
        assert_close(grad, want, 2e-5)


def seen_by(layout, owner, size):
    """Rows and (row, key) pairs of dense causal attention of each of `size` processes."""
    place = torch.arange(len(owner)) - layout.cu_seqlens[layout.sample] + 1
    return [(int((owner == i).sum()), int(place[owner == i].sum())) for i in range(size)]


@pytest.mark.parametrize("size", [2, 3, 8])
def test_processes_have_like_work(size):
    layout = token_layout([(16, (60, 4, 4), 100), (8, (30, 4, 4), 40)])
    rows, pairs = zip(*seen_by(layout, row_owners(layout, size), size), strict=True)
    assert sum(rows) == len(layout.rows)
    assert max(rows) - min(rows) <= 0.02 * max(rows)
    assert max(pairs) - min(pairs) <= 0.02 * max(pairs)


def test_queries_that_share_a_choice_stay_together():
    layout = token_layout([(3, (7, 3, 5), 4)])
    owner = row_owners(layout, 4, 4)[layout.video_index]
    cell = layout.cell[layout.video_index]
    first = torch.arange(len(cell)) - cell % 4
    assert torch.equal(owner, owner[first])
    assert len(owner.unique()) == 4
