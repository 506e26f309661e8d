from types import SimpleNamespace
from typing import get_args, get_type_hints

import pytest
import torch
import transformers
from packaging.version import Version

from nsa_lab.config.schema import DataConfig
from nsa_lab.data.positions import CONTINUED, mrope_positions
from nsa_testing import published_positions

CUT = Version(transformers.__version__) < Version("5.20")
"""Whether the installed transformers cuts intervals to whole seconds."""


def token_mask(before, grid, after):
    t, h, w = grid
    return torch.tensor([False] * before + [True] * (t * (h // 2) * (w // 2)) + [False] * after)


def test_every_choice_of_the_setting_is_a_rule():
    assert list(get_args(get_type_hints(DataConfig)["positions"])) == list(CONTINUED)


def hugging_face_positions(mask, grids, seconds_per_patch, tokens_per_second):
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

    vision = SimpleNamespace(spatial_merge_size=2, tokens_per_second=tokens_per_second)
    model = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    model.get_vision_position_ids = Qwen2_5_VLModel.get_vision_position_ids.__get__(model)
    positions, _ = Qwen2_5_VLModel.get_rope_index(
        model,
        input_ids=torch.zeros(1, len(mask), dtype=torch.long),
        mm_token_type_ids=2 * mask.long()[None],
        video_grid_thw=torch.tensor(grids),
        second_per_grid_ts=torch.tensor(seconds_per_patch),
    )
    return positions[:, 0]


@pytest.mark.parametrize("fps", [0.5, 1.0, 2.0, 4.0, 8.0])
@pytest.mark.parametrize("grid", [(1, 2, 2), (5, 4, 4), (3, 12, 18), (7, 4, 8), (20, 2, 2)])
@pytest.mark.parametrize("tokens_per_second", [2, 4, 25])
def test_equals_transformers_and_the_published_rule_on_even_times(fps, grid, tokens_per_second):
    mask = token_mask(5, grid, 4)
    times = torch.arange(grid[0], dtype=torch.float64) * 2 / fps
    ours, published = (mrope_positions(mask, torch.tensor([grid]), times, tokens_per_second, positions=name)
                       for name in ("transformers", "qwen"))  # fmt: skip
    assert ours.dtype == published.dtype == torch.int64
    if not CUT or (2 / fps).is_integer():
        assert torch.equal(ours, hugging_face_positions(mask, [grid], [2 / fps], tokens_per_second))
    assert torch.equal(published, published_positions(2 * mask, [], [grid], [2 / fps], tokens_per_second))


def test_equals_transformers_and_the_published_rule_on_two_videos():
    grids = [(2, 4, 4), (3, 2, 6)]
    mask = torch.cat([token_mask(3, grids[0], 2), token_mask(1, grids[1], 3)])
    times = torch.tensor([0, 1.0, 0, 0.5, 1.0], dtype=torch.float64)
    if not CUT:
        ours = mrope_positions(mask, torch.tensor(grids), times, positions="transformers")
        assert torch.equal(ours, hugging_face_positions(mask, grids, [1.0, 0.5], 2))
    ours = mrope_positions(mask, torch.tensor(grids), times, positions="qwen")
    assert torch.equal(ours, published_positions(2 * mask, [], grids, [1.0, 0.5]))


def test_text_after_a_minute_of_video():
    """Published weights read the question after the video in time, as a tensor of three equal ids."""
    grid, times = (60, 4, 6), torch.arange(60, dtype=torch.float64)
    mask = token_mask(4, grid, 2)
    given = mask, torch.tensor([grid]), times
    assert mrope_positions(*given, positions="qwen")[:, -2:].tolist() == [[123, 124]] * 3
    assert mrope_positions(*given, positions="transformers")[:, -2:].tolist() == [[7, 8]] * 3


def test_videos_may_touch():
    """Nothing but their grids says where one ends."""
    grids, mask = [(2, 2, 4), (3, 4, 2)], torch.tensor([False] + [True] * 10 + [False])
    ours = mrope_positions(mask, torch.tensor(grids), torch.tensor([0, 1.0, 0, 1.0, 2.0]), positions="qwen")
    assert torch.equal(ours, published_positions(2 * mask, [], grids, [1.0, 1.0]))


def test_time_advances_at_four_frames_per_second():
    """Half a second per patch: truncating the interval to whole seconds would leave every time id at 0."""
    times = torch.arange(6, dtype=torch.float64) / 2
    positions = mrope_positions(token_mask(0, (6, 2, 2), 0), torch.tensor([[6, 2, 2]]), times)
    assert positions[0].tolist() == [0, 1, 2, 3, 4, 5]


def test_uneven_and_late_times():
    times = torch.tensor([7.0, 7.08, 8.0, 12.5], dtype=torch.float64)
    given = token_mask(3, (4, 2, 2), 2), torch.tensor([[4, 2, 2]]), times
    assert mrope_positions(*given, positions="transformers")[0].tolist() == [0, 1, 2, 3, 3, 5, 14, 4, 5]
    assert mrope_positions(*given, positions="qwen")[0].tolist() == [0, 1, 2, 3, 3, 5, 14, 15, 16]


def test_rounding_does_not_lose_a_step():
    times = torch.arange(50, dtype=torch.float64) * (1 / 3) * 1.5  # 0.5 s apart, not exactly
    positions = mrope_positions(token_mask(0, (50, 2, 2), 0), torch.tensor([[50, 2, 2]]), times)
    assert positions[0].tolist() == list(range(50))


@pytest.mark.parametrize("name", CONTINUED)
def test_text_continues_after_the_larger_side_of_a_short_video(name):
    grid, seconds = (2, 4, 12), torch.tensor([0.0, 1.0])
    positions = mrope_positions(token_mask(1, grid, 2), torch.tensor([grid]), seconds, positions=name)
    assert positions[:, -2:].tolist() == [[7, 8]] * 3
    assert positions[1, 1:13].tolist() == [1] * 6 + [2] * 6
    assert positions[2, 1:7].tolist() == [1, 2, 3, 4, 5, 6]


def test_wrong_lengths_are_refused():
    with pytest.raises(ValueError, match="patch times"):
        mrope_positions(token_mask(1, (2, 2, 2), 1), torch.tensor([[2, 2, 2]]), torch.zeros(3))
    with pytest.raises(ValueError, match="video tokens"):
        mrope_positions(token_mask(1, (2, 2, 4), 1), torch.tensor([[2, 2, 2]]), torch.zeros(2))
    with pytest.raises(ValueError, match="2 video tokens for grids of 4"):
        mrope_positions(token_mask(1, (2, 2, 2), 1), torch.tensor([[2, 2, 2], [2, 2, 2]]), torch.zeros(4))
    apart, grids = torch.tensor([True, False, True, True, True]), torch.tensor([[2, 2, 2], [2, 2, 2]])
    with pytest.raises(ValueError, match="1 video tokens for a grid of 2"):
        mrope_positions(apart, grids, torch.zeros(4))
