from types import SimpleNamespace

import pytest
import torch

from nsa_lab.data.positions import mrope_positions


def token_mask(before, grid, after):
    t, h, w = grid
    return torch.tensor([False] * before + [True] * (t * (h // 2) * (w // 2)) + [False] * after)


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
def test_equals_transformers_on_even_times(fps, grid, tokens_per_second):
    mask = token_mask(5, grid, 4)
    times = torch.arange(grid[0], dtype=torch.float64) * 2 / fps
    ours = mrope_positions(mask, torch.tensor([grid]), times, tokens_per_second)
    assert ours.dtype == torch.int64
    assert torch.equal(ours, hugging_face_positions(mask, [grid], [2 / fps], tokens_per_second))


def test_equals_transformers_on_two_videos():
    grids = [(2, 4, 4), (3, 2, 6)]
    mask = torch.cat([token_mask(3, grids[0], 2), token_mask(1, grids[1], 3)])
    times = torch.tensor([0, 1.0, 0, 0.5, 1.0], dtype=torch.float64)
    ours = mrope_positions(mask, torch.tensor(grids), times)
    assert torch.equal(ours, hugging_face_positions(mask, grids, [1.0, 0.5], 2))


def test_time_advances_at_four_frames_per_second():
    """Half a second per patch: truncating the interval to whole seconds would leave every time id at 0."""
    times = torch.arange(6, dtype=torch.float64) / 2
    positions = mrope_positions(token_mask(0, (6, 2, 2), 0), torch.tensor([[6, 2, 2]]), times)
    assert positions[0].tolist() == [0, 1, 2, 3, 4, 5]


def test_uneven_and_late_times():
    times = torch.tensor([7.0, 7.08, 8.0, 12.5], dtype=torch.float64)
    positions = mrope_positions(token_mask(3, (4, 2, 2), 2), torch.tensor([[4, 2, 2]]), times)
    assert positions[0].tolist() == [0, 1, 2, 3, 3, 5, 14, 4, 5]


def test_rounding_does_not_lose_a_step():
    times = torch.arange(50, dtype=torch.float64) * (1 / 3) * 1.5  # 0.5 s apart, not exactly
    positions = mrope_positions(token_mask(0, (50, 2, 2), 0), torch.tensor([[50, 2, 2]]), times)
    assert positions[0].tolist() == list(range(50))


def test_text_continues_after_the_larger_side():
    grid = (2, 4, 12)
    positions = mrope_positions(token_mask(1, grid, 2), torch.tensor([grid]), torch.tensor([0.0, 1.0]))
    assert positions[:, -2:].tolist() == [[7, 8]] * 3
    assert positions[1, 1:13].tolist() == [1] * 6 + [2] * 6
    assert positions[2, 1:7].tolist() == [1, 2, 3, 4, 5, 6]


def test_wrong_lengths_are_refused():
    with pytest.raises(ValueError, match="patch times"):
        mrope_positions(token_mask(1, (2, 2, 2), 1), torch.tensor([[2, 2, 2]]), torch.zeros(3))
    with pytest.raises(ValueError, match="video tokens"):
        mrope_positions(token_mask(1, (2, 2, 4), 1), torch.tensor([[2, 2, 2]]), torch.zeros(2))
