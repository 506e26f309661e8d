"""Samples of known lengths to batches that are filled to a budget of tokens."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence

LOOK_AHEAD = 256
"""Samples in view, of the shuffled order, while a batch is filled."""


def filled(order: Sequence[int], lengths: Sequence[int], budget: int, look_ahead: int = LOOK_AHEAD) -> list[list[int]]:
    """All samples of `order` in batches of at most `budget` tokens, each sample once.

    A batch begins with the sample that has waited longest; then the longest of the next `look_ahead` that still fits
    is added, the one that has waited longest of equal ones, until none fits. Every length is at most `budget`.
    """
    batches, taken, entered = [], [False] * len(order), 0
    view: list[tuple[int, int]] = []  # (length, place from the end), so that of equal lengths the oldest is last
    last = len(order)
    for oldest, sample in enumerate(order):
        if taken[oldest]:
            continue
        while entered < min(oldest + look_ahead, last):
            insort(view, (lengths[order[entered]], last - entered))
            entered += 1
        batch, room = [], budget
        place = bisect_left(view, (lengths[sample], last - oldest))
        while place >= 0:
            length, back = view.pop(place)
            batch.append(order[last - back])
            taken[last - back] = True
            room -= length
            place = bisect_right(view, (room, last)) - 1
        batches.append(batch)
    return batches


def fill_rate(batches: Sequence[Sequence[int]], lengths: Sequence[int], budget: int) -> float:
    """Which share of the batches' room is filled."""
    return sum(lengths[sample] for batch in batches for sample in batch) / (budget * len(batches))
