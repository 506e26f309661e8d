import pytest
import torch

from nsa_lab.data.positions import CONTINUED, mrope_positions
from nsa_lab.layout import layout_from_mrope, layout_from_token_ids
from nsa_testing import ODD_SHAPES, VIDEO, token_layout


def test_packed_samples_and_frames():
    layout = token_layout(ODD_SHAPES)
    assert layout.cu_seqlens.tolist() == [0, 34, 37, 42, 73]
    assert len(layout.video_index) == 27 + 1 + 24
    assert layout.frame[layout.video_index].tolist() == [f for f in range(3) for _ in range(9)] + [3] + [
        f for f in range(4, 8) for _ in range(6)
    ]
    assert (layout.frame[layout.text_index] == -1).all()


def test_left_padding_is_dropped():
    ids = torch.tensor([[0, 0, 1, VIDEO, VIDEO, 1], [1, 1, VIDEO, VIDEO, 1, 1]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    layout = layout_from_token_ids(ids, VIDEO, torch.tensor([[1, 2, 4], [1, 2, 4]]), attention_mask=mask)
    assert layout.rows.tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert layout.cu_seqlens.tolist() == [0, 4, 10]
    assert layout.video_index.tolist() == [1, 2, 6, 7]


def test_wrong_grid_is_refused():
    with pytest.raises(ValueError, match="announces 4"):
        layout_from_token_ids(torch.tensor([[1, VIDEO, 1]]), VIDEO, torch.tensor([[1, 4, 4]]))


@pytest.mark.parametrize("positions", CONTINUED)
@pytest.mark.parametrize("grid", [(3, 2, 3), (4, 3, 3), (2, 1, 2), (3, 1, 1), (5, 4, 2)])
def test_mrope_ids_keep_every_top_left_token(grid, positions):
    """Tokens whose three positions coincide are video all the same; the released code takes them for text."""
    t, h, w = grid
    is_video = torch.tensor([False] * 4 + [True] * (t * h * w) + [False] * 5)
    grid_thw = torch.tensor([[t, 2 * h, 2 * w]])
    ids = mrope_positions(is_video, grid_thw, torch.arange(t, dtype=torch.float64), positions=positions)
    coinciding = is_video & (ids[0] == ids[1]) & (ids[1] == ids[2])
    assert coinciding.any()
    layout = layout_from_mrope(ids[:, None], grid_thw)
    assert torch.equal(layout.is_video, is_video)
    by_token = layout_from_token_ids(torch.where(is_video, VIDEO, 1)[None], VIDEO, mrope_ids=ids[:, None])
    assert torch.equal(by_token.frame, layout.frame) and torch.equal(by_token.video, layout.video)


@pytest.mark.parametrize("positions", CONTINUED)
def test_mrope_ids_of_two_packed_samples_equal_token_ids(positions):
    layout = token_layout([(3, (3, 2, 3), 4), (2, (2, 2, 2), 1)])
    ids = torch.where(layout.is_video, VIDEO, 1)[None]
    grids = torch.tensor([[3, 4, 6], [2, 4, 4]])
    samples = [
        mrope_positions(ids[0, a:b] == VIDEO, grids[i : i + 1], torch.arange(grids[i, 0]).double(), positions=positions)
        for i, (a, b) in enumerate([(0, 25), (25, 36)])
    ]
    restarts = torch.cat([torch.arange(25), torch.arange(11)])[None]
    found = layout_from_mrope(torch.cat(samples, 1)[:, None], grids, text_positions=restarts)
    assert torch.equal(found.is_video, layout.is_video)
    assert torch.equal(found.frame, layout.frame)
    assert torch.equal(found.cu_seqlens, layout.cu_seqlens)
