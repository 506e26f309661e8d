"""What each partitioner is for, beyond the contract that all share."""

import pytest
import torch

from nsa_lab.partition import PartitionConfig, build_partitioner, sparse_context
from nsa_lab.partition.novelty import Segment, budget_lengths
from nsa_lab.partition.router import Router, ratio_loss
from nsa_lab.partition.tile import tile_shape
from nsa_testing import make_partition, token_layout

HIDDEN = 16


def video(frames, height=2, width=2, kind="video"):
    return sparse_context(token_layout([(1, (frames, height, width), 1)]), kind)


def scenes(context, lengths, seed=0, noise=0.01):
    """[T, hidden]: one random vector per scene of `lengths` frames, and a little noise."""
    generator = torch.Generator().manual_seed(seed)
    scene = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    centres = torch.randn(len(lengths), HIDDEN, generator=generator)
    still = torch.randn(len(context.frame), HIDDEN, generator=generator) * noise
    return centres[scene][context.frame] + still


def lengths_of(kind, context, features, block_size, **settings):
    config = PartitionConfig(kind=kind, block_size=block_size, **settings)
    return build_partitioner(config, HIDDEN)(context, features).lengths.tolist()


def test_frame_equals_uniform_when_frames_have_the_block_size():
    context = sparse_context(token_layout([(3, (4, 8, 8), 2), (0, (2, 8, 8), 0)]), "video")
    frame, uniform = (make_partition(name, context, 64) for name in ("frame", "uniform"))
    assert torch.equal(frame.block_id, uniform.block_id)


def test_frame_blocks_never_cut_a_frame_that_fits():
    context = sparse_context(token_layout([(3, (5, 6, 9), 2)]), "video")
    assert make_partition("frame", context, 64).lengths.tolist() == [54] * 5
    assert make_partition("frame", context, 108).lengths.tolist() == [108, 108, 54]
    assert make_partition("frame", context, 40).lengths.tolist() == [27] * 10


def test_shifted_moves_every_boundary_by_the_phase():
    context = video(5)
    assert lengths_of("shifted", context, None, 8, phase=3) == [5, 8, 7]
    assert lengths_of("shifted", context, None, 8) == [4, 8, 8]


# scene


def test_scene_cuts_where_the_picture_changes():
    """Scenes of 1 to 15 frames, blocks of 4 frames on average, whole frames: most changes open a block."""
    found, changes, opened = 0, 0, 0
    for seed in range(10):
        lengths = torch.randint(1, 16, (8,), generator=torch.Generator().manual_seed(seed)).tolist()
        context = video(sum(lengths))
        blocks = torch.tensor(lengths_of("scene", context, scenes(context, lengths, seed), 16))
        assert (blocks % 4 == 0).all()
        opens = set((blocks.cumsum(0)[:-1] // 4).tolist())
        starts = torch.tensor(lengths).cumsum(0)[:-1].tolist()
        found, changes, opened = (
            found + len(opens & set(starts)),
            changes + len(starts),
            opened + len(opens) / context.frame.max(),
        )
    assert found / changes > 0.7 > 0.35 > opened / 10, (found / changes, opened / 10)


def test_scene_blocks_are_long_where_nothing_changes():
    context = video(40)
    found = lengths_of("scene", context, scenes(context, [3] * 4 + [16] + [3] * 4), 16)
    ends = torch.tensor(found).cumsum(0)
    still = [n for n, end in zip(found, ends.tolist(), strict=True) if end - n > 48 and end <= 112]
    assert max(still) > 16 and max(still) == max(found)


@pytest.mark.parametrize("noise", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("block_size", [8, 16, 24])
def test_scene_blocks_have_the_mean_length_asked_for(block_size, noise):
    """Whatever the scale of change: the budgets of `scene` and `uniform` are to be the same."""
    generator = torch.Generator().manual_seed(1)
    context = video(240)
    cuts = (torch.randint(1, 12, (60,), generator=generator)).tolist()
    found = lengths_of("scene", context, scenes(context, cuts, noise=noise), block_size)
    assert sum(found) / len(found) == pytest.approx(block_size, rel=0.15)
    assert max(found) <= 2 * block_size


def test_scene_of_a_still_video_is_frame():
    context = video(30)
    still = torch.ones(len(context.frame), HIDDEN)
    assert lengths_of("scene", context, still, 12) == lengths_of("frame", context, still, 12)


def test_scene_keeps_its_bounds():
    context = video(60)
    features = scenes(context, [1] * 60)
    found = lengths_of("scene", context, features, 16, min_size=12, max_size=20)
    assert max(found) <= 20 and min(found[:-1]) >= 12


def test_the_novelty_budget_by_hand():
    """Frames of 1 token; costs are 1, 1, 1, then 8 / 2.75, then 1 / 2.4 and 1 / 2.1666."""
    segment = Segment(True, [float("nan"), 1.0, 1.0, 1.0, 8.0, 1.0, 1.0], [1] * 7)
    # The change of cost 2.9 ends the block of budget 4 at 4 tokens; the second block is the rest.
    assert budget_lengths(segment, PartitionConfig(kind="scene", block_size=4)) == [4, 3]
    # At a mean length of 6 the budget is 6: 4 tokens and the change cost 6.9.
    assert budget_lengths(segment, PartitionConfig(kind="scene", block_size=6)) == [4, 3]
    # At 7 all but the last still frame fit: 4 + 2.9 = 6.9.
    assert budget_lengths(segment, PartitionConfig(kind="scene", block_size=7)) == [5, 2]


# controls


def test_random_like_has_the_lengths_of_scene_in_another_order():
    context = sparse_context(token_layout([(1, (60, 2, 2), 1), (1, (40, 2, 2), 1)]), "video")
    features = torch.randn(len(context.frame), HIDDEN, generator=torch.Generator().manual_seed(0))
    config = PartitionConfig(block_size=16)
    partitions = {}
    for name, seed in (("scene", 0), ("random_like", 0), ("random_like", 1)):
        config = PartitionConfig(kind=name, block_size=16, seed=seed)
        partitions[name, seed] = build_partitioner(config, HIDDEN)(context, features)
    scene, one, other = partitions.values()
    for found in (one, other):
        for first, last in scene.cu_blocks.unfold(0, 2, 1).tolist():
            assert sorted(found.lengths[first:last].tolist()) == sorted(scene.lengths[first:last].tolist())
        assert not torch.equal(found.block_id, scene.block_id)
    assert not torch.equal(one.block_id, other.block_id)


def test_random_like_draws_an_order_for_every_sequence_of_lengths(monkeypatch):
    lengths = iter([list(range(1, 13)), list(range(2, 14)), list(range(1, 13))])
    monkeypatch.setattr("nsa_lab.partition.scene.budget_lengths", lambda *_: next(lengths))
    control = build_partitioner(PartitionConfig(kind="random_like"), HIDDEN)
    first, second, again = (control.lengths([Segment(True, [], [])]) for _ in range(3))
    assert [n + 1 for n in first] != second and again == first


def test_foreign_takes_the_boundaries_of_the_next_video():
    context = sparse_context(token_layout([(1, (18, 2, 2), 1), (1, (18, 2, 2), 1), (1, (9, 2, 2), 1)]), "video")
    cuts = [6, 2, 2, 4, 4, *[9, 3, 3, 3], 9]
    features = scenes(context, cuts)
    scene, foreign = (make(kind, context, features, 16) for kind in ("scene", "foreign"))
    blocks = [lengths_by_sample(partition) for partition in (scene, foreign)]
    assert blocks[0][0] != blocks[0][1]
    assert blocks[1][0] == blocks[0][1], "equal videos, so the next one's boundaries as they are"
    assert sum(blocks[1][1]) == 72 and sum(blocks[1][2]) == 36


def test_foreign_alone_takes_its_own_second_half_first():
    context = video(24)
    features = scenes(context, [12, 1, 1, 1, 1, 8])
    found, own = (lengths_of(kind, context, features, 16) for kind in ("foreign", "scene"))
    assert found != own and sum(found) == sum(own) == 96


def make(kind, context, features, block_size):
    return build_partitioner(PartitionConfig(kind=kind, block_size=block_size), HIDDEN)(context, features)


def lengths_by_sample(partition):
    return [part.tolist() for part in partition.lengths.split(partition.cu_blocks.diff().tolist())]


# tile


@pytest.mark.parametrize(
    ("word", "grid", "size", "shape"),
    [
        ("cube", (6, 10), 64, (4, 3, 5)),
        ("cube", (8, 8), 64, (4, 4, 4)),
        ("row", (8, 8), 64, (1, 8, 8)),
        ("row", (6, 10), 30, (1, 3, 10)),
        ("time", (8, 8), 64, (8, 2, 4)),
        ("time", (2, 2), 8, (8, 1, 1)),
        ("row", (2, 2), 8, (2, 2, 2)),
        ("row", (0, 0), 64, (1, 1, 64)),
        ("cube", (7, 11), 16, (2, 7, 1)),
    ],
)
def test_tile_shapes(word, grid, size, shape):
    found = tile_shape(word, *grid, size, 8)
    assert found == shape
    if grid[0]:
        assert grid[0] % found[1] == 0 and grid[1] % found[2] == 0


def test_tiles_gather_what_is_near_in_space_and_time():
    """2 x 4 frames, tiles of 2 frames x 2 x 2: block 0 is the left half of frames 0 and 1."""
    context = video(3, 2, 4)
    config = PartitionConfig(kind="tile", block_size=8)
    config.tile.cycle = "cube row"
    tiles = build_partitioner(config, 1)
    cube, row = tiles(context, None, 0), tiles(context, None, 1)
    assert cube.members[0].tolist() == [0, 1, 4, 5, 8, 9, 12, 13] and cube.perm is not None
    assert cube.lengths.tolist() == [8, 8, 4, 4]
    # A tile of the last, cut short slab is seen at the end of the video only.
    assert cube.block_end.tolist() == [13, 15, 23, 23]
    assert row.members.tolist() == [list(range(8)), list(range(8, 16)), list(range(16, 24))]


# cluster


def test_clusters_are_of_one_kind_and_seen_when_their_stretch_is_over():
    """Two stretches of 16 tokens with 4 kinds of tokens each, in any order: 4 clusters of 4, each of one kind."""
    context = video(8)
    generator = torch.Generator().manual_seed(0)
    kind = torch.cat([torch.randperm(16, generator=generator) % 4 for _ in range(2)])
    features = torch.randn(4, HIDDEN, generator=generator)[kind]
    features = features + 0.01 * torch.randn(features.shape, generator=generator)
    partition = make("cluster", context, features, 4)
    assert partition.lengths.tolist() == [4] * 8 and partition.perm is not None
    assert all(len(kind[members].unique()) == 1 for members in partition.members)
    assert partition.block_end.tolist() == [15] * 4 + [31] * 4 == partition.block_start.tolist()


# router


def test_a_fresh_router_opens_where_content_turns():
    context = video(6, 1, 4)
    axis = torch.eye(HIDDEN)[[0, 0, 1, 1, 1, 2]]
    partition = make("router", context, axis[context.frame] * 3, 8)
    assert partition.lengths.tolist() == [8, 12, 4]
    torch.testing.assert_close(partition.confidence, torch.tensor([1.0, 0.5, 0.5]))
    assert partition.statistics["router/forced_share"] == 0


def test_the_cap_forces_blocks_open_that_the_router_would_not():
    context = video(6, 1, 4)
    partition = make("router", context, torch.ones(24, HIDDEN), 4)
    assert partition.lengths.tolist() == [8, 8, 8]
    # It was sure that nothing turned: p = 0, and its confidence in going on is 1.
    torch.testing.assert_close(partition.confidence, torch.ones(3))
    assert partition.statistics["router/forced_share"] == pytest.approx(2 / 3)


def test_the_ratio_loss_is_least_at_its_target():
    at = {rate: ratio_loss(torch.tensor(rate), torch.tensor(rate), 4).item() for rate in (0.0, 0.1, 0.25, 0.5, 1.0)}
    assert at[0.25] == pytest.approx(1) and min(at.values()) == at[0.25]


@pytest.mark.singly
@pytest.mark.parametrize("target", [4, 8, 16])
@pytest.mark.parametrize("offset", [0.0, 3.0], ids=["turning", "nearly alike"])
def test_the_ratio_loss_steers_the_router(target, offset):
    """From where the router opens almost nothing to within a third of the rate asked for."""
    torch.manual_seed(0)
    context = sparse_context(token_layout([(1, (32, 2, 2), 1)] * 4), "video")
    router = Router(PartitionConfig(kind="router", block_size=target), 32)
    optimizer = torch.optim.Adam(router.parameters(), lr=3e-3)
    rates = []
    for _ in range(200):
        scene = torch.randn(32, 32).repeat_interleave(16, 0)
        partition = router(context, offset + scene + 0.5 * torch.randn(512, 32))
        optimizer.zero_grad()
        partition.auxiliary_loss.backward()
        optimizer.step()
        rates.append(float(partition.statistics["router/boundary_rate"]))
    assert sum(rates[-50:]) / 50 == pytest.approx(1 / target, rel=0.34)
