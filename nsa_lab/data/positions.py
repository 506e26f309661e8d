"""M-RoPE position ids from true timestamps, so that no truncated interval can collapse the time axis."""

import torch
from torch import Tensor

from nsa_lab.layout import MERGE

ROUNDING_GUARD = 1e-6


def mrope_positions(
    is_video: Tensor, grid_thw: Tensor, patch_seconds: Tensor, tokens_per_second: float = 2.0
) -> Tensor:
    """Position ids [3, L] int64 (time, height, width) of one sample's tokens.

    is_video [L] bool, each run of True being one video; grid_thw [V, 3] int64 in patches; patch_seconds [sum of t]
    float64, the time of each temporal patch's first frame. The time id is the floor of tokens_per_second times the
    seconds since the video's first frame. Text continues after the video's larger side, as in transformers.
    """
    if len(patch_seconds) != int(grid_thw[:, 0].sum()):
        raise ValueError(f"{len(patch_seconds)} patch times for {int(grid_thw[:, 0].sum())} temporal patches")
    pieces: list[Tensor] = []
    start, video, patch = 0, 0, 0
    kinds, lengths = torch.unique_consecutive(is_video, return_counts=True)
    for kind, length in zip(kinds.tolist(), lengths.tolist(), strict=True):
        if not kind:
            pieces.append((torch.arange(length) + start).expand(3, -1))
            start += length
            continue
        t, h, w = grid_thw[video].tolist()
        if length != t * (h // MERGE) * (w // MERGE):
            raise ValueError(f"{length} video tokens for a grid of {t}x{h}x{w} patches")
        times = _time_ids(patch_seconds[patch : patch + t], tokens_per_second)
        pieces.append(_video_positions(times, h // MERGE, w // MERGE) + start)
        start += max(h, w) // MERGE
        video, patch = video + 1, patch + t
    return torch.cat(pieces, dim=1)


def _time_ids(seconds: Tensor, tokens_per_second: float) -> Tensor:
    elapsed = seconds.double() - seconds[0].double()
    return (tokens_per_second * elapsed + ROUNDING_GUARD).floor().long()


def _video_positions(times: Tensor, height: int, width: int) -> Tensor:
    grid = torch.meshgrid(times, torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack(grid).reshape(3, -1)
