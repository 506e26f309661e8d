"""Tiles of queries that share one choice of blocks: who shares, what is chosen, and how far causality reaches."""

import pytest
import torch

from nsa_lab.attention import groups
from nsa_lab.attention.backends import BACKENDS
from nsa_lab.attention.compressors import mean_of_blocks
from nsa_lab.attention.dims import HeadDims
from nsa_lab.attention.query_tiles import query_tiles
from nsa_lab.attention.trace import Trace
from nsa_lab.config import load_config
from nsa_lab.partition import PARTITIONERS, sparse_context
from nsa_testing import (
    ODD_SHAPES,
    block_rule,
    compression_scorer,
    gated_branches,
    make_partition,
    random_heads,
    token_layout,
)

SCORER = compression_scorer()
reference, torch_path = (BACKENDS["reference"], BACKENDS["torch"])


@pytest.mark.parametrize("context", ["video", "all"])
def test_tiles_count_from_the_first_token_of_each_frame(context):
    tokens = sparse_context(token_layout([(2, (2, 1, 5), 3), (0, (1, 1, 1), 2), (1, (1, 2, 2), 0)]), context)
    tiles = query_tiles(tokens, 3)
    assert tiles.first.tolist() == [0, 0, 0, 3, 3, 5, 5, 5, 8, 8, 10, 11, 11, 11, 14]
    assert tiles.last.tolist() == [2, 2, 2, 4, 4, 7, 7, 7, 9, 9, 10, 13, 13, 13, 14]
    assert query_tiles(tokens, 3) is tiles
    assert query_tiles(tokens, 1).first.tolist() == list(range(15))


@pytest.mark.pairwise
@pytest.mark.parametrize("pieces", ["one piece", "many pieces"])
@pytest.mark.parametrize("size", [2, 5, 64])
@pytest.mark.parametrize(("context", "block_size"), [("video", 4), ("all", 3), ("video", 1)])
@pytest.mark.parametrize("partition", PARTITIONERS)
def test_torch_path_equals_the_reference(partition, context, block_size, size, pieces, monkeypatch):
    if pieces == "many pieces":
        monkeypatch.setattr(groups, "PIECE_BYTES", 2000)
        monkeypatch.setattr(groups, "MIN_ROWS", 5)
    tokens = sparse_context(token_layout(ODD_SHAPES), context)
    blocks = make_partition(partition, tokens, block_size)
    q, k, _ = random_heads(len(tokens.query_index), len(tokens.token_index), (4, 2, 16), torch.float64).all
    options = {"scale": 0.25, "scorer": SCORER, "block_bias": blocks.lengths.double().log()}
    for rule in (
        block_rule(3, 1, 1, query_tile=size),
        block_rule(4, 0, 2, query_tile=size),
        block_rule(2, 0, 0, query_tile=size),
    ):
        chosen = [
            ops.select_blocks(q, mean_of_blocks(k, blocks), tokens, blocks, rule=rule, **options)
            for ops in (reference, torch_path)
        ]
        assert torch.equal(*chosen)
        tiles = query_tiles(tokens, size)
        assert torch.equal(chosen[0], chosen[0][tiles.first])


def test_scores_are_summed_over_the_tile():
    """Three queries of one frame, two old blocks: two queries mildly prefer block 1, one strongly prefers block 0."""
    tokens = sparse_context(token_layout([(0, (3, 1, 3), 0)]), "video")
    blocks = make_partition("uniform", tokens, 3)
    pooled = torch.eye(3, 4, dtype=torch.float64)[:, None]
    q = torch.zeros(9, 1, 4, dtype=torch.float64)
    q[6, 0, 0], q[7, 0, 1], q[8, 0, 1] = 9.0, 0.4, 0.4
    for ops in (reference, torch_path):
        alone, shared = (
            ops.select_blocks(
                q,
                pooled,
                tokens,
                blocks,
                scale=1.0,
                scorer=SCORER,
                rule=block_rule(2, 0, 1, query_tile=size),
            )[6:, 0].tolist()
            for size in (1, 3)
        )
        assert alone == [[0, 2], [1, 2], [1, 2]]
        assert shared == [[0, 2]] * 3


def test_the_layer_is_causal_frame_by_frame():
    config = load_config(
        None,
        [
            "tasks.needle.enabled=true", "attention.partition.block_size=2", "attention.branches.window.size=2",
            "attention.branches.selection.block_count=4", "attention.branches.selection.query_tile=4",
            "attention.backend=torch",
        ],
    ).attention  # fmt: skip
    tokens = sparse_context(token_layout([(0, (6, 2, 2), 0)]), "video")
    blocks = make_partition("uniform", tokens, 2)
    torch.manual_seed(0)
    layer = gated_branches(config, HeadDims(16, 2, 1, 16)).double()
    x = torch.randn(24, 16, dtype=torch.float64)
    q, k, v = (t.detach() * 3 for t in random_heads(24, 24, (2, 1, 16), torch.float64).all)
    before = layer(x, q, k, v, tokens, blocks, Trace())
    inside_frame = False
    for changed in range(24):
        inputs = [t.clone() for t in (x, q, k, v)]
        for t in inputs:
            t[changed:] = torch.randn_like(t[changed:]) * 3
        after = layer(*inputs, tokens, blocks, Trace())
        frame = changed // 4 * 4
        assert torch.equal(before[:frame], after[:frame])
        inside_frame |= not torch.equal(before[frame:changed], after[frame:changed])
    assert inside_frame, "a later token of the frame never moved the shared choice: the tile does nothing"
