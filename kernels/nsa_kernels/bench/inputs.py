"""What the bench feeds to the kernels: random heads, or heads that behave like a video's.

`random`: q, k, v and the output's gradient are standard normal, so every query chooses its own blocks. It is the worst
case for a kernel that hopes that neighbouring queries choose alike.

`video`: a sample of frames of 60 tokens each (one token per place, in raster order), cut into scenes whose length is
drawn evenly from 10 to 80 frames; the last scene ends with the sample. For every KV head apart,

    content c of frame f of a scene:  (c_0 + 0.1 * w_f) / sqrt(1 + 0.01 * steps): c_0 standard normal, w a random walk
                                      of unit normal steps from the scene's first frame, so that c keeps unit variance
                                      and drifts slowly;
    place u of each of the 60 places: standard normal, new for every scene, the same in all its frames;
    z = (2 c + u) / sqrt(5)           shared by the keys and the queries of a token;
    k = (2 z + noise) / sqrt(5),  q = (2 z + noise) / sqrt(5) for each query head apart, noise standard normal;
    v and the output's gradient       standard normal.

Queries of one frame share the content, so they choose nearly the same blocks: those of their own scene whose content
has drifted least, then the most similar scenes. The bench reports the measured mean union of the blocks that 16
neighbouring queries choose (`mean_union`).

Both come in one packed sample without text, and `leaders` cuts both into tiles of neighbouring queries of a frame.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

FRAME = 60
"""Tokens of a frame: 16:9 at 50,176 pixels, 28 pixels a token."""
SCENE_FRAMES = (10, 80)
DRIFT = 0.1
NEIGHBOURS = 16


@dataclass(frozen=True)
class Heads:
    """H query heads, G key/value heads, D head dim."""

    query: int = 28
    groups: int = 4
    dim: int = 128

    @property
    def ratio(self) -> int:
        return self.query // self.groups


@dataclass(frozen=True)
class Inputs:
    """q, do [T, H, D], k, v [T, G, D], gates [T, H, 3] in (0, 1), all of one dtype."""

    q: Tensor
    k: Tensor
    v: Tensor
    gates: Tensor
    do: Tensor


def random_inputs(tokens: int, heads: Heads, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Inputs:
    draw = _drawer(device, seed)
    q = draw(tokens, heads.query, heads.dim).to(dtype)
    k = draw(tokens, heads.groups, heads.dim).to(dtype)
    return _complete(q, k, draw, tokens, heads, dtype)


def video_inputs(tokens: int, heads: Heads, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Inputs:
    draw = _drawer(device, seed)
    frame = torch.arange(tokens, device=device) // FRAME
    scene_of_frame, first_frame = scenes(-(-tokens // FRAME), seed)
    scene_of_frame, first_frame = scene_of_frame.to(device), first_frame.to(device)
    content = _content(scene_of_frame, first_frame, draw, heads)
    place = draw(int(scene_of_frame[-1]) + 1, FRAME, heads.groups, heads.dim)
    u = place[scene_of_frame[frame], torch.arange(tokens, device=device) % FRAME]
    z = (2 * content[frame] + u) / 5**0.5
    k = ((2 * z + draw(tokens, heads.groups, heads.dim)) / 5**0.5).to(dtype)
    q = torch.empty(tokens, heads.query, heads.dim, dtype=dtype, device=device)
    for head in range(heads.query):
        q[:, head] = ((2 * z[:, head // heads.ratio] + draw(tokens, heads.dim)) / 5**0.5).to(dtype)
    return _complete(q, k, draw, tokens, heads, dtype)


INPUTS: dict[str, Callable[..., Inputs]] = {"random": random_inputs, "video": video_inputs}


def scenes(frames: int, seed: int) -> tuple[Tensor, Tensor]:
    """The scene of each frame, and the first frame of that scene, [frames] int64 each."""
    generator = torch.Generator().manual_seed(seed)
    low, high = SCENE_FRAMES
    lengths = torch.randint(low, high + 1, (frames // low + 1,), generator=generator)
    stops = lengths.cumsum(0)
    scene = torch.searchsorted(stops, torch.arange(frames), right=True)
    return scene, (stops - lengths)[scene]


def leaders(tokens: int, query_tile: int, device: torch.device) -> Tensor:
    """[T] int32: the first query of each query's tile; a tile is at most `query_tile` queries of one frame."""
    query = torch.arange(tokens, device=device)
    place = query % FRAME
    return (query - place % query_tile).to(torch.int32)


def mean_union(chosen: Tensor, neighbours: int = NEIGHBOURS) -> float:
    """Distinct blocks that `neighbours` adjacent queries of a group choose, on average.

    chosen [Tq, G, S] block numbers, -1 for an empty slot.
    """
    whole = len(chosen) // neighbours * neighbours
    if not whole:
        return float("nan")
    return distinct(chosen[:whole].unflatten(0, (-1, neighbours)).transpose(1, 2).flatten(2)).float().mean().item()


def distinct(numbers: Tensor) -> Tensor:
    """How many different ones stand in each row of the last dimension, those below zero left out."""
    runs = numbers.sort(-1).values
    new = (runs[..., 1:] != runs[..., :-1]) & (runs[..., 1:] >= 0)
    return new.sum(-1) + (runs[..., 0] >= 0)


def _content(scene: Tensor, first: Tensor, draw: Callable[..., Tensor], heads: Heads) -> Tensor:
    """[frames, G, D]"""
    walk = draw(len(scene), heads.groups, heads.dim).cumsum(0)
    start = draw(int(scene[-1]) + 1, heads.groups, heads.dim)
    steps = (torch.arange(len(scene), device=scene.device) - first)[:, None, None]
    return (start[scene] + DRIFT * (walk - walk[first])) / (1 + DRIFT**2 * steps).sqrt()


def _complete(
    q: Tensor, k: Tensor, draw: Callable[..., Tensor], tokens: int, heads: Heads, dtype: torch.dtype
) -> Inputs:
    v = draw(tokens, heads.groups, heads.dim).to(dtype)
    do = draw(tokens, heads.query, heads.dim).to(dtype)
    return Inputs(q, k, v, draw(tokens, heads.query, 3).sigmoid().to(dtype), do)


def _drawer(device: torch.device, seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator(device).manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator, device=device)
