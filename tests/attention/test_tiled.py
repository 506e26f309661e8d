"""What is chosen as tiles for FlexAttention: the tiles against the mask, and attention against that under the mask."""

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from nsa_baselines import LAYOUTS, layout_of, make_method, mask_read, peaked_heads, prefill
from nsa_lab.attention.methods import METHODS, tiled
from nsa_lab.attention.methods.tiles import Grid, tiles_of_blocks
from nsa_lab.attention.methods.training_free import TrainingFree, attend_where
from nsa_lab.layout import moved
from nsa_testing import assert_close, requires_gpu

HEADS = (6, 2, 16)
SPARSE = {
    "a_shape": ["a_shape={initial: 20, local: 150}"],
    "tri_shape": ["tri_shape={initial: 20, local: 50, last: 30}"],
    "x_attention": ["x_attention={block_size: 48, stride: 8, threshold: 0.2}"],
    "flex_prefill": ["flex_prefill={block_size: 64, gamma: 0.2}"],
    "minference": ["minference={vertical: 30, slash: 6, last: 16, first: 1, near: 1, block_size: 24}"],
}
"""Settings under which some hundred tokens are not read densely, with blocks that are no divisors of a tile."""

every_method = pytest.mark.parametrize("name", [n for n, kind in METHODS.items() if issubclass(kind, TrainingFree)])


def chosen(name, count, *settings, heads=HEADS, device="cpu", dtype=torch.float32):
    """(method, choice, allowed, q, k, v) of one sample: a few text rows, a video, and a question of 50."""
    method = make_method(heads, f"method={name}", *SPARSE[name], *settings)
    q, k, v = (x.to(device, dtype) for x in peaked_heads(count, heads))
    video = torch.ones(count, dtype=torch.bool, device=device)
    video[:9] = video[-50:] = False
    return method, *method.chosen(q, k, video), q, k, v


def spread(tiles, size, count):
    """[H or 1, T, T] bool: each pair of tokens as its tile is."""
    return tiles.repeat_interleave(size, 1).repeat_interleave(size, 2)[:, :count, :count]


@every_method
@pytest.mark.parametrize(("count", "size"), [(211, 32), (128, 128), (97, 40)])
def test_tiles_hold_every_pair_and_whole_ones_nothing_else(name, count, size):
    choice = chosen(name, count)[1]
    tiles = choice.tiles(Grid.of(count, size, torch.device("cpu"))).causal()
    some, whole = (spread(part, size, count) for part in (tiles.some, tiles.whole))
    mask = mask_read(choice, HEADS[0], count)
    gathered = torch.zeros(1, 1, 1, dtype=torch.bool) if choice.columns is None else choice.columns[:, None]
    assert not (mask & ~some & ~gathered).any() and not (whole & ~mask).any()


def test_tiles_of_blocks_are_no_more_than_those():
    table = torch.rand(3, 9, 9, generator=torch.Generator().manual_seed(0)) < 0.5
    pairs = spread(table, 7, 60)
    tiles = tiles_of_blocks(table, 7, Grid.of(60, 16, torch.device("cpu")))
    for row in range(4):
        for key in range(4):
            held = pairs[:, 16 * row : 16 * row + 16, 16 * key : 16 * key + 16].flatten(1)
            assert tiles.some[:, row, key].equal(held.any(1)) and tiles.whole[:, row, key].equal(held.all(1))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@every_method
@pytest.mark.parametrize("settings", [[], ["text_window=40"]], ids=["", "text_window"])
def test_attention_in_tiles_is_that_under_the_mask(name, settings, monkeypatch):
    # Not compiled, FlexAttention reads the mask alone and not the tiles; see the tests on a GPU.
    monkeypatch.setattr(tiled, "_compiled", lambda: flex_attention)
    method, choice, allowed, q, k, v = chosen(name, 300, *settings)
    with torch.no_grad():
        found = tiled.in_tiles(choice, allowed, HEADS[0], method.scale, backward=False)(q, k, v)
        assert_close(found, attend_where(choice, allowed, method.scale, q, k, v), 1e-5)
        mask = mask_read(choice, HEADS[0], 300)
    assert mask.float().mean() < 0.45


def test_a_pair_that_a_gathered_column_holds_too_is_read_once():
    _, choice, allowed, *_ = chosen("minference", 300)
    places = tiled.gathered(choice.columns)
    head, row = torch.arange(HEADS[0])[:, None, None], torch.arange(300)[:, None]
    parts = tiled.block_mask(choice, allowed, False), tiled.block_mask_of_columns(choice, allowed, places, False)
    near = parts[0].mask_mod(None, head, row, torch.arange(300))
    found = parts[1].mask_mod(None, head, row, torch.arange(places.shape[1]))
    far = torch.zeros(HEADS[0], 300, 301, dtype=torch.int64)
    far.scatter_add_(2, places[:, None].expand(-1, 300, -1), found.long())
    assert (near.long() + far[:, :, :300]).equal(mask_read(choice, HEADS[0], 300).long())
    assert far.sum() > 0 and not far[:, :, 300].any()


@pytest.mark.gpu
@requires_gpu
@every_method
@pytest.mark.parametrize(("count", "settings"), [(1_000, []), (515, ["text_window=40"]), (128, []), (60, [])])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float32, 1e-4)], ids=["bf16", "f32"])
def test_tiles_on_a_gpu(name, count, settings, dtype, tolerance):
    heads = (14, 2, 128)
    method, choice, allowed, *low = chosen(name, count, *settings, heads=heads, device="cuda", dtype=dtype)
    own, plain = ([x.clone().requires_grad_() for x in low] for _ in range(2))
    found = method.attend(choice, allowed, own[0])(*own)
    expected = attend_where(choice, allowed, method.scale, *plain)
    assert_close(found, expected, tolerance)
    weights = torch.randn_like(expected)
    grads, wanted = (torch.autograd.grad((o * weights).sum(), x) for o, x in ((found, own), (expected, plain)))
    for grad, other in zip(grads, wanted, strict=True):
        assert_close(grad, other, 2 * tolerance)


@pytest.mark.gpu
@requires_gpu
@every_method
def test_packed_samples_on_a_gpu_are_those_on_a_cpu(name):
    method, layout = make_method((4, 2, 16), f"method={name}", *SPARSE[name]), layout_of(LAYOUTS["two videos"])
    given = [x.float() for x in peaked_heads(len(layout.rows), (4, 2, 16))]
    expected, cost = prefill(method, layout, *given)
    found, same = prefill(method, moved(layout, torch.device("cuda")), *(x.cuda() for x in given))
    assert_close(found.cpu(), expected, 1e-4)
    assert cost == same
