"""M-RoPE positions of a model's inputs, where no data set has computed them: in generate(), and of bare forwards."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nsa_lab.data.positions import IMAGE, VIDEO, place_blocks, time_ids, vision_block
from nsa_lab.model.config import positions_of


def token_types(config: Any, input_ids: Tensor) -> Tensor:
    """What each of `input_ids` is, as transformers' mm_token_type_ids: 0 text, 1 image, 2 video."""
    return IMAGE * (input_ids == config.image_token_id) + VIDEO * (input_ids == config.video_token_id)


def rope_index(
    config: Any,
    input_ids: Tensor,
    image_grid_thw: Tensor | None,
    video_grid_thw: Tensor | None,
    second_per_grid_ts: Tensor | None,
    attention_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """M-RoPE ids [3, B, L] int64 of input_ids [B, L], 0 on padding, and deltas [B, 1].

    A row's delta is one more than its greatest id less the tokens it has: added to the number of a later token, it
    gives that token's id. Text goes on after an image or video as `config.positions` says. Grids [V, 3] are in patches
    and in the order of the rows. The patches of a video are second_per_grid_ts [V] apart (without it, a second);
    before 5.20 transformers cuts that to whole seconds, which puts all of a 4 fps video at time 0. A row may be padding
    alone, which fills a batch. Raises ValueError where tokens and grids do not fit together.
    """
    types = token_types(config, input_ids).cpu()
    real = torch.ones_like(types, dtype=torch.bool) if attention_mask is None else attention_mask.bool().cpu()
    blocks = {
        IMAGE: _vision_blocks(config.vision_config, image_grid_thw, None),
        VIDEO: _vision_blocks(config.vision_config, video_grid_thw, second_per_grid_ts),
    }
    positions = torch.zeros(3, *types.shape, dtype=torch.int64)
    deltas = []
    for row, keep in enumerate(real):
        ids = place_blocks(types[row, keep], blocks, positions_of(config))
        positions[:, row, keep] = ids
        deltas.append(int(ids.max()) + 1 - ids.shape[1] if ids.shape[1] else 0)
    return positions.to(input_ids.device), torch.tensor(deltas, device=input_ids.device)[:, None]


def _vision_blocks(vision: Any, grids: Tensor | None, seconds: Tensor | None) -> Iterator[Tensor]:
    sizes = [] if grids is None else grids.tolist()
    steps = [1.0] * len(sizes) if seconds is None else torch.as_tensor(seconds).tolist()
    if len(steps) != len(sizes):
        raise ValueError(f"second_per_grid_ts holds {len(steps)} intervals for {len(sizes)} videos; give one each")
    for grid, step in zip(sizes, steps, strict=True):
        times = time_ids(torch.arange(grid[0], dtype=torch.float64) * step, vision.tokens_per_second)
        yield vision_block(times, grid, vision.spatial_merge_size)
