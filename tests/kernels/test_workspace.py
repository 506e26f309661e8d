"""What the ops say they take, against the bound and against what they allocate."""

import pytest
import torch

from nsa_kernels import workspace
from nsa_kernels.bench.inputs import Inputs
from nsa_kernels.bench.parity import gradient_error
from nsa_kernels.runtime import INTERPRET, WORKSPACE_BYTES
from nsa_kernels.selection import forward
from nsa_kernels.testing import odd_blocks, random_heads
from nsa_kernels.workspace import Shape, gathers, in_parts, selection_bytes_per_query, selection_chunk, workspace_bytes


@pytest.mark.parametrize("extra_pairs", [None, 576], ids=["forward", "backward"])
@pytest.mark.parametrize("queries", [1, 8192, 131072, 262144])
@pytest.mark.parametrize(
    ("block_count", "block_size"),
    [(32, 64), (16, 128), (128, 16), (1, 256), (128, 1), (256, 8), (512, 4), (512, 1), (512, 256)],
)
def test_the_layer_of_the_7b_stays_within_the_bound(queries, block_count, block_size, extra_pairs):
    blocks, gathered = -(-queries // block_size), gathers(block_count, block_size)
    shape = Shape(queries, queries, blocks, 28, 4, 128, block_count, block_size, gathered=gathered)
    assert workspace_bytes(shape, extra_pairs) <= WORKSPACE_BYTES
    assert 1 <= selection_chunk(shape, extra_pairs) <= queries


@pytest.mark.parametrize("queries", [131072, 196608, 229376, 262144])
def test_where_float32_gradients_fill_the_bound_rounds_stay_long(queries):
    shape = Shape(queries, queries, queries // 64, 32, 8, 128, 32, 64)
    held = 8 * queries * 8 * 128 + 40 * queries * 32 + in_parts(shape).choice_bytes
    assert workspace_bytes(shape) <= WORKSPACE_BYTES
    assert workspace_bytes(shape, 576) <= max(WORKSPACE_BYTES, held + 5 * 2**26)
    assert selection_chunk(shape, 576) >= 256


def test_a_choice_in_parts_is_counted():
    shape = Shape(262144, 262144, 1024, 32, 4, 256, 32, 256)
    parts = in_parts(shape)
    assert parts.block_count * parts.block_size >= 32 * 256 and parts.block_size <= 64
    assert parts.choice_bytes == 4 * 262144 * 4 * parts.block_count
    assert in_parts(parts) == parts
    assert workspace_bytes(shape) <= WORKSPACE_BYTES


def test_a_chunk_is_what_the_forward_takes(monkeypatch):
    blocks = odd_blocks(permuted=False, sparse=False)
    q, k, v, _, _ = random_heads(blocks, (2, 1, 16), torch.float32)
    chosen = blocks.block_of_query[:, None, None].contiguous()
    taken = []
    build = forward.build_lists
    monkeypatch.setattr(forward, "build_lists", lambda chosen, *rest: taken.append(len(chosen)) or build(chosen, *rest))
    monkeypatch.setattr(forward, "selection_chunk", lambda shape: 32)
    cut, _ = forward.selection_forward(q, k, v, chosen, blocks, 0.25)
    assert taken[:-1] == [32] * (len(taken) - 1) and sum(taken) == len(q) and len(taken) > 1
    monkeypatch.undo()
    whole, _ = forward.selection_forward(q, k, v, chosen, blocks, 0.25)
    torch.testing.assert_close(cut, whole, rtol=1e-5, atol=1e-6)
    shape = forward.shape_of(q, k, chosen, blocks)
    assert selection_bytes_per_query(shape, None) >= 2 * 1 * (16 * 4 + 4)


@pytest.mark.skipif(not INTERPRET, reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize("permuted", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_backward_in_parts_gives_the_same_gradients(permuted):
    blocks = odd_blocks(permuted=permuted)
    q, k, v, gates, do = random_heads(blocks, (7, 1, 16), torch.float32)
    chosen = torch.stack([blocks.block_of_query, blocks.first_block], -1)[:, None].contiguous()
    chosen[..., 1].masked_fill_(chosen[..., 0] == chosen[..., 1], -1)
    exact = Inputs(*(x.double().requires_grad_() for x in (q, k, v, gates, do)))
    for most in (4, workspace.BACKWARD_KEYS):
        assert gradient_error(Inputs(q, k, v, gates, do), exact, chosen, blocks, 0.25, most) < 1e-5


def test_a_backward_in_parts_is_counted(monkeypatch):
    shape = Shape(131072, 131072, 1024, 28, 4, 128, 16, 128)
    whole = workspace_bytes(shape), in_parts(shape, 8).choice_bytes
    monkeypatch.setattr(workspace, "BACKWARD_KEYS", 8)
    assert workspace_bytes(shape) == whole[0]
    assert whole[1] < workspace_bytes(shape, 576) <= WORKSPACE_BYTES
    assert selection_chunk(shape, 576, 8) < selection_chunk(shape, 576)
