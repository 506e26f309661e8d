"""What every partitioner must hold to: parametrised over PARTITIONERS, so that a new one is tested by its line."""

import pytest
import torch

from nsa_lab.partition import PARTITIONERS, check_partition, sparse_context
from nsa_lab.testing import ODD_SHAPES, token_layout

SHAPES = {
    "odd": ODD_SHAPES,
    "54 tokens a frame": [(2, (5, 6, 9), 3)],
    "60 tokens a frame": [(2, (3, 6, 10), 3), (1, (2, 6, 10), 1)],
    "64 tokens a frame": [(0, (4, 8, 8), 0)],
    "a frame longer than a block": [(1, (2, 12, 11), 1)],
    "no video": [(4, (0, 0, 0), 2)],
}


@pytest.mark.parametrize("context", ["video", "all"])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("block_size", [1, 4, 7, 64])
@pytest.mark.parametrize("name", PARTITIONERS)
def test_blocks_cover_the_context_once(name, block_size, shapes, context):
    tokens = sparse_context(token_layout(shapes), context)
    partition = PARTITIONERS[name](tokens, block_size)
    check_partition(partition, tokens, cap=block_size)
    assert partition.lengths.sum() == len(tokens.segment)
    assert (partition.lengths > 0).all()
    for block in range(partition.num_blocks):
        members = partition.members[block]
        members = members[members >= 0]
        assert members.max() == partition.block_end[block] and members.min() == partition.block_start[block]
        assert (partition.block_id[members] == block).all()
        assert torch.equal(partition.rank[members], torch.arange(len(members)))
    again = PARTITIONERS[name](tokens, block_size)
    assert torch.equal(again.block_id, partition.block_id)


@pytest.mark.parametrize("name", PARTITIONERS)
def test_closed_blocks_of_a_prefix_stay(name):
    """Blocks that end before the prefix does are the same when more frames follow."""
    whole = PARTITIONERS[name](sparse_context(token_layout([(1, (6, 3, 3), 1)]), "video"), 7)
    prefix = PARTITIONERS[name](sparse_context(token_layout([(1, (4, 3, 3), 1)]), "video"), 7)
    closed = int((prefix.block_end < prefix.block_end.max()).sum())
    assert torch.equal(prefix.block_end[:closed], whole.block_end[:closed])


def test_frame_equals_uniform_when_frames_have_the_block_size():
    context = sparse_context(token_layout([(3, (4, 8, 8), 2), (0, (2, 8, 8), 0)]), "video")
    frame, uniform = (PARTITIONERS[name](context, 64) for name in ("frame", "uniform"))
    assert torch.equal(frame.block_id, uniform.block_id)


def test_frame_blocks_never_cut_a_frame_that_fits():
    context = sparse_context(token_layout([(3, (5, 6, 9), 2)]), "video")
    assert PARTITIONERS["frame"](context, 64).lengths.tolist() == [54] * 5
    assert PARTITIONERS["frame"](context, 108).lengths.tolist() == [108, 108, 54]
    assert PARTITIONERS["frame"](context, 40).lengths.tolist() == [27] * 10
