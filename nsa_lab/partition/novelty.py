"""How new each frame is, and where an online budget of novelty cuts a video. What `scene` and its controls share.

Units are frames; a frame longer than the block size is cut into equal parts first, each compared with the same part of
the frame before.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nsa_lab.errors import Problem
from nsa_lab.partition.base import Causality, Context, Partition, Partitioner, partition_from_starts
from nsa_lab.partition.segments import next_start, part_starts, run_starts

FLOOR = 1e-6
"""Novelty of a still frame: float noise must not count as change."""
GAIN = 0.5
"""How hard the budget pulls the mean length back: a greater gain misses changes, a smaller one lets the mean drift."""


class Averaged(Partitioner):
    """A partitioner that has block_size as the mean length to aim for, and max_size as the cap."""

    @dataclass
    class Config(Partitioner.Config):
        """Blocks of min_size to max_size tokens (null: twice the block size), block_size on average."""

        max_size: int | None = None
        min_size: int = 1

    scales = {**Partitioner.scales, "max_size": "frame", "min_size": "tile"}

    @classmethod
    def longest(cls, config: Any) -> int:
        return int(2 * config.block_size if config.max_size is None else config.max_size)

    @classmethod
    def problems(cls, config: Any, design: Any) -> Iterator[Problem]:
        yield from super().problems(config, design)
        size = config.block_size
        if config.max_size is not None and config.max_size < size:
            yield Problem("max_size", f"{config.max_size} is less than block_size={size}, the mean length to aim for")
        if size >= 1 and not 1 <= config.min_size <= size:
            yield Problem("min_size", f"{config.min_size} is outside 1 to the mean length, block_size={size}")


@dataclass(frozen=True)
class Segment:
    """The units of one run of tokens, on the host: novelty in [0, 2] (NaN where no frame came before), tokens each."""

    is_video: bool
    novelty: list[float]
    lengths: list[int]


@torch.no_grad()
def segments_of(context: Context, features: Tensor, block_size: int) -> list[Segment]:
    """Novelty 1 - cos of each unit's mean feature [T, hidden] to its predecessor's; one transfer to the host."""
    starts = part_starts(context.frame, block_size).nonzero().flatten()
    lengths = torch.cat([starts, starts.new_tensor([len(context.frame)])]).diff()
    means = torch.segment_reduce(features.float(), "mean", lengths=lengths, axis=0, unsafe=True)
    frame, segment = context.frame[starts], context.segment[starts]
    parts = torch.bincount(frame, minlength=1)[frame]
    before = torch.arange(len(starts), device=starts.device) - parts
    known = (before >= 0) & (segment[before.clamp(min=0)] == segment)
    novelty = 1 - F.cosine_similarity(means, means[before.clamp(min=0)], dim=-1)
    novelty = novelty.clamp(min=0).masked_fill(~known, math.nan)
    is_video = context.frame_grid[starts, 0] > 0
    columns = torch.stack([novelty.double(), lengths.double(), is_video.double()]).tolist()
    bounds = [*run_starts(segment).tolist(), len(starts)]
    return [
        Segment(bool(columns[2][a]), columns[0][a:b], [int(n) for n in columns[1][a:b]]) for a, b in pairwise(bounds)
    ]


def budget_lengths(segment: Segment, config: Averaged.Config) -> list[int]:
    """Block lengths in tokens that an online novelty budget gives `segment`.

    A unit costs its tokens times its novelty over the mean novelty so far: still frames are cheap, changes dear. One
    that would take the block past its budget opens the next block, at its plain length. The budget is `block_size` when
    the blocks so far have that mean length, exp(GAIN) times less for each block that is missing and more for each too
    many, which holds the mean near `block_size`. No block is longer than the cap, nor, where the cap lets it be,
    shorter than `min_size`. Nothing looks ahead: a unit's cut follows from it and those before.
    """
    cap = Averaged.longest(config)
    lengths: list[int] = []
    block, spent, budget = 0, 0.0, math.inf
    total, count, tokens = 0.0, 0, 0
    for novelty, length in zip(segment.novelty, segment.lengths, strict=True):
        rate = 1.0
        if not math.isnan(novelty):
            total, count = total + novelty, count + 1
            rate = (novelty + FLOOR) / (total / count + FLOOR)
        over = block >= config.min_size and spent + length * rate > budget
        if block == 0 or over or block + length > cap:
            if block:
                lengths.append(block)
            missing = tokens / config.block_size - len(lengths)
            block, spent, budget = 0, 0.0, config.block_size * math.exp(-GAIN * missing)
            rate = 1.0
        block, spent, tokens = block + length, spent + length * rate, tokens + length
    return [*lengths, block]


def partition_of_lengths(lengths: list[int], context: Context, causality: Causality) -> Partition:
    """The blocks of `lengths`, laid end to end over the context; each is over when the next one has begun."""
    starts = torch.zeros_like(context.segment, dtype=torch.bool)
    ends = torch.tensor(lengths, dtype=torch.int64, device=starts.device).cumsum(0)
    starts[:1] = True
    starts[ends[:-1]] = True
    end = next_start(starts, context.segment)
    return partition_from_starts(starts, context.cu_seqlens, causality, block_end=end)
