"""M-RoPE position ids from true timestamps, so that no truncated interval can collapse the time axis."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from nsa_lab.layout import MERGE

ROUNDING_GUARD = 1e-6
TEXT, IMAGE, VIDEO = 0, 1, 2
"""What a token is, as transformers' mm_token_type_ids say it."""


def mrope_positions(
    is_video: Tensor,
    grid_thw: Tensor,
    patch_seconds: Tensor,
    tokens_per_second: float = 2.0,
    *,
    positions: str = "qwen",
) -> Tensor:
    """Position ids [3, L] int64 (time, height, width) of one sample's tokens.

    is_video [L] bool; grid_thw [V, 3] int64 in patches; patch_seconds [sum of t] float64, the time of each temporal
    patch's first frame. The time id is the floor of tokens_per_second times the seconds since the video's first frame.
    `positions` names in CONTINUED where the tokens after a video go on. Raises ValueError where tokens, grids and
    times do not fit together.
    """
    frames = grid_thw[:, 0].tolist()
    if len(patch_seconds) != sum(frames):
        raise ValueError(f"{len(patch_seconds)} patch times for {sum(frames)} temporal patches")
    times = (time_ids(seconds, tokens_per_second) for seconds in patch_seconds.split(frames))
    blocks = [vision_block(*given) for given in zip(times, grid_thw.tolist(), strict=True)]
    announced = sum(block.shape[1] for block in blocks)
    if announced != int(is_video.sum()):
        raise ValueError(f"{int(is_video.sum())} video tokens for grids of {announced}")
    return place_blocks(VIDEO * is_video.long(), {VIDEO: blocks}, positions)


def time_ids(seconds: Tensor, tokens_per_second: float) -> Tensor:
    """Time ids [t] int64 of temporal patches at `seconds` [t], the first being 0."""
    elapsed = seconds.double() - seconds[:1].double()
    return (tokens_per_second * elapsed + ROUNDING_GUARD).floor().long()


def vision_block(times: Tensor, grid: Sequence[int], merge: int = MERGE) -> Tensor:
    """Ids [3, n] int64 of an image or video that begins at 0: times [t], `grid` (t, h, w) in patches."""
    _, height, width = grid
    ids = torch.meshgrid(times, torch.arange(height // merge), torch.arange(width // merge), indexing="ij")
    return torch.stack(ids).reshape(3, -1)


def place_blocks(types: Tensor, blocks: Mapping[int, Iterable[Tensor]], positions: str) -> Tensor:
    """Ids [3, L] int64 of tokens of `types` [L] (TEXT, IMAGE, VIDEO): text one by one, between it vision blocks.

    `blocks` holds the vision_block of each image and of each video in order; from an iterator only those of this
    sample are taken. Raises ValueError where there are more or fewer tokens of a type than its blocks hold.
    """
    next_after, waiting = CONTINUED[positions], {kind: iter(some) for kind, some in blocks.items()}
    kinds, lengths = torch.unique_consecutive(types, return_counts=True)
    pieces: list[Tensor] = []
    start = 0
    for kind, length in zip(kinds.tolist(), lengths.tolist(), strict=True):
        if kind == TEXT:
            pieces.append((torch.arange(length) + start).expand(3, -1))
            start += length
            continue
        for block in _filling(length, waiting.get(kind, iter(())), NAMES[kind]):
            pieces.append(block + start)
            start = next_after(pieces[-1])
    return torch.cat(pieces, 1) if pieces else torch.zeros(3, 0, dtype=torch.int64)


def _filling(length: int, blocks: Iterator[Tensor], name: str) -> Iterator[Tensor]:
    """The next of `blocks`, of `length` tokens together: blocks may touch."""
    left = length
    while left > 0:
        block = next(blocks, None)
        if block is None:
            raise ValueError(f"{left} of {length} {name} tokens in a row have no grid; give a grid for each {name}")
        if block.shape[1] > left:
            raise ValueError(f"{left} {name} tokens for a grid of {block.shape[1]}; give the grids of these tokens")
        left -= block.shape[1]
        yield block


def _after_the_greatest(block: Tensor) -> int:
    return int(block.max()) + 1


def _after_the_larger_side(block: Tensor) -> int:
    return int(block[1:].max()) + 1


NAMES = {IMAGE: "image", VIDEO: "video"}
CONTINUED: dict[str, Callable[[Tensor], int]] = {
    "qwen": _after_the_greatest,
    "transformers": _after_the_larger_side,
}
"""Where the tokens after an image or video [3, n] go on, by data.positions.

qwen: one after its greatest id in time, height or width, as the published weights were trained (transformers up to 5.2,
qwen-vl-utils, the released VideoNSA). transformers: one after its larger side, whatever its time (transformers from
5.3), so that text stands before most of a long video in time.
"""
