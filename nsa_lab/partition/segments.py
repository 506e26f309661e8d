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
