"""The data behind the partition pictures."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from nsa_lab.analysis.look import LayerLook
from nsa_lab.analysis.query_picture import chosen_blocks, seen_tokens, weight_colours
from nsa_lab.analysis.sheet import MAX_FRAMES, shown_frames
from nsa_lab.analysis.timeline import block_lanes
from nsa_lab.analysis.view import Blocks, edges, frame_similarity, known_cuts, make_blocks, make_choice, make_video
from nsa_lab.data import Sample
from nsa_lab.partition import partition_from_block_id, sparse_context
from nsa_testing import token_layout

GRID = (4, 2, 3)
QUERY = 16


def sample(**meta):
    return Sample("clip", Path("clip.mp4"), (), "needle", meta=meta)


def test_a_permuted_partition_is_laid_over_the_frames(blocks):
    left_column, rows = [[0, 1, 1], [0, 1, 1]], [[2, 2, 2], [3, 3, 3]]
    assert blocks.of_token.tolist() == [left_column, left_column, rows, rows]
    assert blocks.lengths.tolist() == [4, 8, 6, 6]
    assert blocks.first.tolist() == [0, 1, 12, 15]
    assert blocks.last.tolist() == [9, 11, 20, 23]
    assert not blocks.ordered


def test_blocks_are_numbered_by_their_first_token_whatever_the_partition_calls_them():
    context = sparse_context(token_layout([(0, (1, 1, 4), 0)]), "video")
    partition = partition_from_block_id(torch.tensor([1, 0, 1, 0]), context.cu_seqlens, "video")
    chosen, scores = torch.tensor([[1]]), torch.tensor([[0.0, 1.0]])
    seen = LayerLook(context, partition, chosen, scores)
    blocks = make_blocks(seen, (1, 1, 4))
    assert blocks.of_token.tolist() == [[[0, 1, 0, 1]]]
    assert blocks.number.tolist() == [1, 0]
    choice = make_choice(seen, blocks, 2)
    assert choice.groups.tolist() == [1, 0]
    assert choice.weight[0] == 1.0 and np.isnan(choice.weight[1])


def test_blocks_of_text_are_left_out():
    context = sparse_context(token_layout([(3, (2, 1, 2), 4)]), "all")
    text, video = [0, 0, 0], [1, 1, 2, 2]
    partition = partition_from_block_id(torch.tensor([*text, *video, 3, 3, 3, 3]), context.cu_seqlens, "token")
    seen = LayerLook(context, partition, torch.tensor([[0, 1]]), torch.tensor([[0.25, 0.75, 0.0, 0.0]]))
    blocks = make_blocks(seen, (2, 1, 2))
    assert blocks.of_token.flatten().tolist() == [0, 0, 1, 1]
    assert blocks.lengths.tolist() == [2, 2] and blocks.ordered
    choice = make_choice(seen, blocks, 2)
    assert choice.weight[0] == 0.75 and np.isnan(choice.weight[1])
    assert choice.groups.tolist() == [1, 0]


def test_a_choice_holds_mean_weights_of_complete_blocks_and_the_groups_that_selected_each(tiles, blocks):
    choice = make_choice(tiles, blocks, QUERY)
    assert choice.weight[:2].tolist() == [0.5, 0.5]
    assert np.isnan(choice.weight[2:]).all()  # tiles 2 and 3 end after token 16
    assert choice.groups.tolist() == [1, 1, 0, 1] and choice.num_groups == 2
    assert chosen_blocks(choice).tolist() == [3, 0, 1]  # the open one, then by weight
    assert np.array_equal(np.isnan(choice.weight), (weight_colours(choice) == weight_colours(choice)[3]).all(1))


def test_without_a_selection_branch_every_complete_block_counts(tiles, blocks):
    bare = LayerLook(tiles.context, tiles.partition, None, tiles.scores)
    choice = make_choice(bare, blocks, QUERY)
    assert choice.groups is None
    assert sorted(chosen_blocks(choice)) == [0, 1]
    assert make_choice(LayerLook(tiles.context, tiles.partition, None, None), blocks, QUERY) is None


def test_a_query_sees_chosen_blocks_other_blocks_and_the_future(tiles, blocks):
    seen = seen_tokens(blocks, make_choice(tiles, blocks, QUERY))
    assert seen[0].tolist() == [[0, 1, 1], [0, 1, 1]]
    assert seen[2].tolist() == [[-1, -1, -1], [3, 3, -2]]  # tile 2 was not selected; token 17 is after the query
    assert (seen[3] == -2).all()


def sides(cells):
    """The sides where neighbours differ, as ((y, x), (y, x)) of the two tokens; the frame's border is one of them."""
    h, w = cells.shape
    found = set()
    for y, x in np.ndindex(h + 1, w + 1):
        for other in ((y - 1, x), (y, x - 1)):
            a, b = (cells[p] if 0 <= p[0] < h and 0 <= p[1] < w else None for p in ((y, x), other))
            if a != b:
                found.add((other, (y, x)))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_outlines_run_where_the_block_changes_and_nowhere_else(seed):
    cells = np.random.default_rng(seed).integers(0, 3, (4, 5))
    drawn = Counter()
    for block, (x0, y0), (x1, y1) in edges(cells):
        y, x = (y0 + y1) / 2, (x0 + x1) / 2
        pair = ((int(y - 1), int(x)), (int(y), int(x))) if y0 == y1 else ((int(y), int(x - 1)), (int(y), int(x)))
        drawn[pair, block] += 1
        assert abs(x1 - x0) + abs(y1 - y0) == 1
    wanted = Counter()
    for pair in sides(cells):
        for y, x in pair:
            if 0 <= y < 4 and 0 <= x < 5:
                wanted[pair, int(cells[y, x])] += 1
    assert drawn == wanted


@pytest.mark.parametrize("seed", range(5))
def test_outlines_are_closed_and_stay_inside_their_block(seed):
    cells = np.random.default_rng(seed).integers(0, 3, (4, 5))
    ends = Counter()
    for block, (x0, y0), (x1, y1) in edges(cells, inset=0.1):
        for x, y in ((x0, y0), (x1, y1)):
            ends[block, round(x, 6), round(y, 6)] += 1
            assert cells[int(y), int(x)] == block
    assert all(count == 2 for count in ends.values())


def test_a_frame_of_one_block_is_outlined_at_its_border_only():
    found = edges(np.zeros((2, 2), int))
    assert len(found) == 8
    assert all({x0, x1} in ({0.0}, {2.0}) or {y0, y1} in ({0.0}, {2.0}) for _, (x0, y0), (x1, y1) in found)


def test_blocks_of_one_lane_do_not_overlap(blocks):
    lanes = block_lanes(blocks)
    assert lanes == [0, 1, 0, 1]
    rng = np.random.default_rng(0)
    first = np.sort(rng.integers(0, 50, 30))
    last = first + rng.integers(0, 9, 30)
    some = Blocks(np.zeros((1, 1, 1), int), last - first + 1, first, last, np.arange(30))
    lanes = block_lanes(some)
    for lane in set(lanes):
        mine = [i for i in range(30) if lanes[i] == lane]
        assert all(last[a] < first[b] for a, b in itertools.pairwise(mine))
    deepest = max(int(((first <= at) & (last >= at)).sum()) for at in range(60))
    assert max(lanes) + 1 == deepest


def test_long_videos_show_the_wanted_frames_and_others_evenly():
    assert shown_frames(MAX_FRAMES) == list(range(MAX_FRAMES))
    shown = shown_frames(1000, [777, 5, 6, 777])
    assert len(set(shown)) == len(shown) == MAX_FRAMES
    assert shown == sorted(shown) and {0, 5, 6, 777, 999} <= set(shown)
    crowded = shown_frames(1000, range(500))
    assert len(crowded) == MAX_FRAMES and crowded[-1] == 999


def test_known_cuts_come_from_annotations_events_and_scenes():
    assert known_cuts(sample(), None) is None
    assert known_cuts(sample(cuts=[3, 1.5]), None) == (1.5, 3.0)
    assert known_cuts(sample(cuts="here and there"), None) is None
    events, scenes = [{"start": 0, "frames": 4}], [{"start": 4, "frames": 2}]
    assert known_cuts(sample(events=events, scenes=scenes), 2.0) == (2.0, 3.0)
    assert known_cuts(sample(events=events), None) is None  # whose frames would they be?


def test_similarity_is_the_cosine_of_neighbouring_frame_means():
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    embeddings = torch.stack([one, 3 * one, one + one, one, other, other])
    assert frame_similarity(embeddings, 3).tolist() == pytest.approx([1.0, 0.0])
    assert len(frame_similarity(embeddings, 1)) == 0


def test_a_video_has_one_picture_and_one_time_per_temporal_patch():
    frames = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 56, 84)
    video = make_video(sample(), frames, torch.arange(5) / 4.0, torch.ones(18, 4), None)
    assert video.images[:, 0, 0, 0].tolist() == [0, 2, 4] and video.grid == (3, 2, 3)
    assert video.seconds.tolist() == [0.0, 0.5, 1.0, 1.25]
    assert video.place(10) == (1, 1, 1)
    assert video.time(np.array([0, 6, 9, 18])).tolist() == [0.0, 0.5, 0.75, 1.25]
