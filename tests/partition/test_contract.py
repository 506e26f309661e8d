"""What every partitioner must hold to: parametrised over PARTITIONERS, so that a new one is tested by its line.

A partition is judged by what a query sees of it (`seen_by`): the blocks that are over, whole, and those begun, up to
the query.
"""

import pytest
import torch

from nsa_lab.layout import TokenLayout
from nsa_lab.partition import PARTITIONERS, PartitionConfig, build_partitioner, check_partition, sparse_context
from nsa_testing import ODD_SHAPES, token_layout

SHAPES = {
    "odd": ODD_SHAPES,
    "54 tokens a frame": [(2, (5, 6, 9), 3)],
    "60 tokens a frame": [(2, (3, 6, 10), 3), (1, (2, 6, 10), 1)],
    "64 tokens a frame": [(0, (4, 8, 8), 0)],
    "a frame longer than a block": [(1, (2, 12, 11), 1)],
    "one frame of one token": [(0, (1, 1, 1), 0)],
    "many frames of one token": [(1, (23, 1, 1), 0)],
    "no video": [(4, (0, 0, 0), 2)],
}
TWO_VIDEOS = [(2, (7, 3, 3), 2), (1, (6, 2, 2), 3)]
HIDDEN = 12
TIGHTER = {"frame": "token", "look_ahead": "frame", "video": "frame"}

every_partitioner = pytest.mark.parametrize("name", PARTITIONERS)
every_layer = pytest.mark.parametrize("layer", [0, 1, 2])


def make(name, context, features, block_size, layer=0, **settings):
    config = PartitionConfig(kind=name, block_size=block_size, **settings)
    return build_partitioner(config, HIDDEN)(context, features, layer)


def random_features(context, seed=0):
    """[T, hidden] that change from frame to frame, sometimes a little and sometimes much."""
    generator = torch.Generator().manual_seed(seed)
    frames = int(context.frame.max()) + 1 if len(context.frame) else 0
    steps = torch.randn(frames, HIDDEN, generator=generator) * torch.rand(frames, 1, generator=generator) ** 3
    noise = torch.randn(len(context.frame), HIDDEN, generator=generator)
    return steps.cumsum(0)[context.frame] + noise


def seen_by(partition, key):
    """What a query at `key` can know of a partition: (members, confidence) of closed blocks, members so far of others.

    Blocks come in the order of their numbers, which decides between equal scores.
    """
    closed, begun = [], []
    for block, members in enumerate(partition.members.tolist()):
        members = [member for member in members if member >= 0]
        if partition.block_end[block] <= key:
            sure = None if partition.confidence is None else round(partition.confidence[block].item(), 5)
            closed.append((members, sure))
        elif partition.block_start[block] <= key:
            begun.append([member for member in members if member <= key])
    return closed, begun


@pytest.mark.pairwise
@every_partitioner
@pytest.mark.parametrize("context", ["video", "all"])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("block_size", [1, 4, 7, 64])
def test_blocks_cover_the_context_once(name, block_size, shapes, context):
    tokens = sparse_context(token_layout(shapes), context)
    for layer in (0, 1, 2):
        partition = make(name, tokens, random_features(tokens), block_size, layer)
        cap = PARTITIONERS[name].longest(PartitionConfig(kind=name, block_size=block_size))
        check_partition(partition, tokens, cap)
        found = sorted(member for block in partition.members.tolist() for member in block if member >= 0)
        assert found == list(range(len(tokens.segment)))
        for block in range(partition.num_blocks):
            members = partition.members[block]
            members = members[members >= 0]
            assert 1 <= len(members) == partition.lengths[block] <= partition.max_length <= cap
            assert members.min() <= partition.block_start[block] and members.max() <= partition.block_end[block]
            assert (tokens.segment[members] == tokens.segment[partition.block_end[block]]).all()
            assert (partition.block_id[members] == block).all()
            assert torch.equal(partition.rank[members], torch.arange(len(members)))
        if partition.perm is not None:
            assert torch.equal(partition.perm.sort().values, torch.arange(len(tokens.segment)))
            assert (partition.block_id[partition.perm].diff() >= 0).all()
        sample_of_block = torch.bucketize(partition.block_end, tokens.cu_seqlens[1:-1], right=True)
        counts = torch.bincount(sample_of_block, minlength=len(tokens.cu_seqlens) - 1)
        assert torch.equal(partition.cu_blocks.diff(), counts) and (sample_of_block.diff() >= 0).all()


@every_partitioner
@every_layer
def test_what_a_partitioner_says_of_itself(name, layer):
    tokens = sparse_context(token_layout(TWO_VIDEOS), "video")
    partition = make(name, tokens, random_features(tokens), 4, layer)
    assert partition.causality == PARTITIONERS[name].causality
    assert not partition.block_id.is_floating_point() and partition.block_id.device == tokens.segment.device
    assert all(torch.isfinite(torch.as_tensor(value)).all() for value in partition.statistics.values())
    if partition.auxiliary_loss is not None:
        assert partition.auxiliary_loss.shape == () and partition.auxiliary_loss.isfinite()
    if partition.confidence is not None:
        assert partition.confidence.shape == (partition.num_blocks,)
        assert ((partition.confidence >= 0) & (partition.confidence <= 1)).all()
        assert (partition.confidence[partition.cu_blocks[:-1]] == 1).all(), "confidence runs into the next video"


@every_partitioner
@every_layer
@pytest.mark.parametrize("context", ["video", "all"])
def test_the_same_input_gives_the_same_blocks(name, layer, context):
    tokens = sparse_context(token_layout(TWO_VIDEOS), context)
    features = random_features(tokens)
    partitioner = build_partitioner(PartitionConfig(kind=name, block_size=7), features.shape[1])
    torch.manual_seed(0)
    first = partitioner(tokens, features, layer)
    partitioner(tokens, random_features(tokens, 3), layer)
    torch.manual_seed(1)
    for again in (partitioner(tokens, features.clone(), layer), make(name, tokens, features, 7, layer)):
        assert torch.equal(first.block_id, again.block_id) and torch.equal(first.block_end, again.block_end)


def views_that_move(name, level, layer, block_size, context_kind):
    """How many queries see another partition when everything changes that comes after them, by `level`."""
    tokens = sparse_context(token_layout(TWO_VIDEOS), context_kind)
    features = random_features(tokens)
    before = make(name, tokens, features, block_size, layer)
    key = torch.arange(len(features))
    moved = 0
    for query in range(len(features)):
        frames = PARTITIONERS[name].look_ahead_frames if level == "look_ahead" else 0
        later = key > query if level == "token" else tokens.frame > tokens.frame[query] + frames
        for seed in (1, 2):
            other = torch.where(later[:, None], random_features(tokens, seed) * 3 - 2, features)
            after = make(name, tokens, other, block_size, layer)
            moved += seen_by(before, query) != seen_by(after, query)
    return moved


@pytest.mark.pairwise
@every_partitioner
@every_layer
@pytest.mark.parametrize(("block_size", "context"), [(4, "video"), (7, "video"), (12, "all")])
def test_no_query_sees_a_block_that_depends_on_later_content(name, layer, block_size, context):
    level = PARTITIONERS[name].causality
    if level != "video":
        assert views_that_move(name, level, layer, block_size, context) == 0


@every_partitioner
def test_the_declared_causality_is_no_laxer_than_needed(name):
    level = PARTITIONERS[name].causality
    if level in TIGHTER:
        moved = sum(views_that_move(name, TIGHTER[level], 0, block_size, "video") for block_size in (4, 7))
        assert moved > 0, f"{name} declares {level!r}, but {TIGHTER[level]!r} holds as well"


@pytest.mark.pairwise
@every_partitioner
@every_layer
@pytest.mark.parametrize("block_size", [4, 7, 64])
def test_a_prefix_has_the_blocks_of_the_whole(name, layer, block_size):
    """Every query of the prefix but its last, at which short blocks close, sees what it sees in the whole."""
    if not PARTITIONERS[name].prefix_consistent:
        return
    whole, prefix = (sparse_context(token_layout([(1, (frames, 3, 4), 0)]), "video") for frames in (9, 5))
    features = random_features(whole)
    cut = make(name, prefix, features[: len(prefix.segment)], block_size, layer)
    full = make(name, whole, features, block_size, layer)
    for query in range(len(prefix.segment) - 1):
        assert seen_by(cut, query) == seen_by(full, query), f"at key {query}"


@every_partitioner
@every_layer
@pytest.mark.parametrize("context", ["video", "all"])
def test_samples_of_a_batch_do_not_depend_on_each_other(name, layer, context):
    if PARTITIONERS[name].causality == "video":
        return
    tokens = sparse_context(token_layout(TWO_VIDEOS), context)
    features = random_features(tokens)
    together = make(name, tokens, features, 7, layer)
    found = []
    for number, (begin, end) in enumerate(tokens.cu_seqlens.unfold(0, 2, 1).tolist()):
        alone = make(
            name, sparse_context(token_layout(TWO_VIDEOS[number : number + 1]), context), features[begin:end], 7, layer
        )
        found.append(alone.block_id + (int(found[-1].max()) + 1 if found else 0))
    assert torch.equal(torch.cat(found), together.block_id)


@every_partitioner
def test_features_are_needed_where_they_are_said_to_be(name):
    tokens = sparse_context(token_layout(TWO_VIDEOS), "video")
    one, other = (make(name, tokens, random_features(tokens, seed), 4).block_id for seed in (0, 5))
    if not PARTITIONERS[name].needs_features:
        assert torch.equal(make(name, tokens, None, 4).block_id, one)
    assert torch.equal(one, other) != PARTITIONERS[name].needs_features


def test_check_partition_refuses_what_breaks_the_contract():
    from dataclasses import replace

    tokens = sparse_context(token_layout(TWO_VIDEOS), "video")
    good = make("uniform", tokens, None, 4)
    check_partition(good, tokens, 4)
    crossing = make("uniform", replace(tokens, segment=tokens.segment * 0), None, 4)
    for wrong, cap, said in [
        (good, 3, "more than the cap"),
        (crossing, 4, "crosses two samples"),
        (replace(good, block_end=good.block_end - 1), 4, "before it is complete"),
        (replace(good, perm=torch.zeros_like(good.block_id)), 4, "exactly once"),
        (replace(good, perm=torch.arange(len(good.block_id)).flip(0)), 4, "order of their blocks"),
    ]:
        with pytest.raises(ValueError, match=said):
            check_partition(wrong, tokens, cap)


def test_layouts_keep_their_grids():
    layout = token_layout(TWO_VIDEOS)
    assert isinstance(layout, TokenLayout) and layout.grids.tolist() == [[7, 3, 3], [6, 2, 2]]
    context = sparse_context(layout, "all")
    assert context.frame_grid[layout.video_index[0]].tolist() == [3, 3] and context.frame_grid[0].tolist() == [0, 0]
