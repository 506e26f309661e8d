"""Counting inside runs of equal numbers."""

import torch
from torch import Tensor


def run_starts(run: Tensor) -> Tensor:
    """[n] int64: where each run of equal neighbours in `run` [T] begins."""
    change = torch.ones_like(run, dtype=torch.bool)
    change[1:] = run.diff() != 0
    return change.nonzero().flatten()


def place_in_run(run: Tensor) -> Tensor:
    """[T] int64: how many equal neighbours stand before each element of its run."""
    starts = run_starts(run)
    lengths = torch.cat([starts, starts.new_tensor([len(run)])]).diff()
    return torch.arange(len(run), device=run.device) - starts.repeat_interleave(lengths)


def run_lengths(run: Tensor) -> Tensor:
    """[T] int64: the length of the run each element belongs to."""
    starts = run_starts(run)
    lengths = torch.cat([starts, starts.new_tensor([len(run)])]).diff()
    return lengths.repeat_interleave(lengths)


def place_of_run(run: Tensor, outer: Tensor) -> Tensor:
    """[T] int64: how many runs of `run` stand before each element's own in its run of `outer`; both count up by one."""
    starts = run_starts(outer)
    lengths = torch.cat([starts, starts.new_tensor([len(run)])]).diff()
    return run - run[starts].repeat_interleave(lengths)


def part_starts(run: Tensor, size: int) -> Tensor:
    """[T] bool: where each run begins, and each part of a run that is cut into equal parts of at most `size`."""
    place, length = place_in_run(run), run_lengths(run)
    part = place * -(-length // size) // length
    starts = place == 0
    starts[1:] |= part.diff() > 0
    return starts


def next_start(starts: Tensor, segment: Tensor) -> Tensor:
    """[N] int64: the key at which it is known that a block of content is over: the first of the next block.

    starts [T] bool opens blocks. The last block of a segment is over at its own last key.
    """
    first = starts.nonzero().flatten()
    following = first.roll(-1)
    following[-1:] = len(starts) - 1
    return following - (segment[following] != segment[first]).long()
