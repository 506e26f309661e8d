"""What a training-free method chose, on a GPU: FlexAttention over the tiles that hold something, never a T x T mask."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo
from torch import Tensor

from nsa_lab.attention.methods.pairs import Allowed, Choice
from nsa_lab.attention.methods.tiles import Grid, Tiles, listed

TILE = 128
"""FlexAttention's own; its kernels take smaller steps inside."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q [T, H, D], k and v [T, G, D] to [T, H, D]."""


def why_not_tiled(q: Tensor) -> str | None:
    """None where FlexAttention computes q [T, H, D], otherwise the reason."""
    if q.device.type != "cuda":
        return "tiles are walked on CUDA devices alone"
    if q.dtype == torch.float64:
        return "FlexAttention does not compute in float64"
    if q.shape[-1] < 16:
        return f"FlexAttention wants 16 columns a head or more, not {q.shape[-1]}"
    return None


def in_tiles(choice: Choice, allowed: Allowed, heads: int, scale: float, backward: bool) -> Attend:
    """The attention of one sample to what was chosen, for `heads` query heads; `backward` where it is wanted, too.

    Columns that all rows of a head read are gathered and attended apart, and both parts weighed by their sums.
    """
    mask = block_mask(choice, allowed, backward)
    if choice.columns is None:
        return lambda q, k, v: _flex(q, k, v, mask, scale)[0]
    places = gathered(choice.columns)
    column_mask = block_mask_of_columns(choice, allowed, places, backward)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        near, near_sum = _flex(q, k, v, mask, scale, sums=True)
        own_k, own_v = (_columns_of(x, places, heads) for x in (k, v))
        far, far_sum = _flex(q, own_k, own_v, column_mask, scale, sums=True)
        share = torch.sigmoid(far_sum - near_sum).T[..., None].to(near.dtype)
        return near + share * (far - near)

    return attend


def block_mask(choice: Choice, allowed: Allowed, backward: bool) -> Any:
    """The tiles of `choice.seen`, without its columns."""
    grid, tiles = _tiles(choice, allowed)

    def mask(b: Tensor, h: Tensor, row: Tensor, key: Tensor) -> Tensor:
        return choice.seen(h, row, key) & allowed(row, key)

    return _block_mask(tiles, (grid.count, grid.count), mask, backward)


def block_mask_of_columns(choice: Choice, allowed: Allowed, places: Tensor, backward: bool) -> Any:
    """Of the columns at `places` [H, C], those that a row does not see anyway."""
    grid = Grid.of(allowed.count, TILE, allowed.device)
    some = places[:, None, ::TILE] <= grid.last[:, None]

    def mask(b: Tensor, h: Tensor, row: Tensor, column: Tensor) -> Tensor:
        key = places[h, column]
        return allowed(row, key) & ~choice.seen(h, row, key)

    return _block_mask(Tiles(some, torch.zeros_like(some)), (grid.count, places.shape[1]), mask, backward)


def visited(choice: Choice, allowed: Allowed) -> float:
    """The share of the tiles of dense attention that are walked, gathered columns apart."""
    grid, tiles = _tiles(choice, allowed)
    count = len(grid.first)
    return float(tiles.some.double().sum(2).mean(0).sum()) / (count * (count + 1) / 2)


def _tiles(choice: Choice, allowed: Allowed) -> tuple[Grid, Tiles]:
    grid = Grid.of(allowed.count, TILE, allowed.device)
    return grid, allowed.cut(choice.tiles(grid).causal(), grid)


def gathered(columns: Tensor) -> Tensor:
    """[H, C] int64: where columns [H, T] bool are true, ascending; of a head with fewer than the most, T at the end."""
    count = columns.shape[1]
    most = max(1, int(columns.sum(1).max()))
    places = torch.arange(count, device=columns.device).expand_as(columns)
    return places.masked_fill(~columns, count).sort(dim=1).values[:, :most]


def _columns_of(x: Tensor, places: Tensor, heads: int) -> Tensor:
    """[C, H, D]: of x [T, G, D] what stands at places [H, C]; past the end, which no row sees, the last."""
    group = torch.arange(heads, device=x.device) // (heads // x.shape[1])
    return x[places.T.clamp(max=len(x) - 1), group]


def _block_mask(tiles: Tiles, lengths: tuple[int, int], mask: Callable[..., Tensor], backward: bool) -> Any:
    from torch.nn.attention.flex_attention import BlockMask

    whole = tiles.whole & tiles.some
    partly, wholly = (listed(part[None]) for part in (tiles.some & ~whole, whole))
    return BlockMask.from_kv_blocks(
        *partly, *wholly, BLOCK_SIZE=TILE, mask_mod=mask, seq_lengths=lengths, compute_q_blocks=backward
    )


def _flex(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float, sums: bool = False) -> tuple[Tensor, Any]:
    from torch.nn.attention.flex_attention import AuxRequest

    rows, keys, values = (x.transpose(0, 1)[None] for x in (q, k, v))
    # Past the limit of recompilations dynamo would fall back to a T x T score matrix.
    with torch._dynamo.config.patch(recompile_limit=256, fail_on_recompile_limit_hit=True):
        out = _compiled()(
            rows, keys, values, block_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1],
            kernel_options={"BACKEND": "TRITON"} if q.is_cuda else None,
            return_aux=AuxRequest(lse=True) if sums else None,
        )  # fmt: skip
    out, found = (out[0], out[1].lse[0]) if sums else (out, None)
    return out[0].transpose(0, 1), found


@functools.cache
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)
