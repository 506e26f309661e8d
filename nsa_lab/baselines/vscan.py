"""VScan (arXiv 2505.22654): tokens that matter to a frame or to a part of it, and halfway through, to the question."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nsa_lab.baselines.by_question import attention_of_question, strongest
from nsa_lab.baselines.per_frame import Frames, Merge, PerFrame, highest, nearest, places_of
from nsa_lab.baselines.reducer import count_of, no_share, no_such_layer
from nsa_lab.errors import Problem

WINDOW = 4
"""Rows and columns of a local window in tokens: those of the tower's windowed attention."""


@dataclass
class Scans:
    """keep: the share of each frame's tokens that enter the decoder. late: the share of these that layer `layer` and
    those after it get; without one, from the middle of the decoder on."""

    keep: float = 0.167
    late: float = 0.333
    layer: int | None = None


class VScan(PerFrame):
    """Of each frame half as many tokens as stay are chosen globally, half in windows; the rest is merged into them.

    Global ones receive most attention in the last block of the tower in which a whole frame attends. The others receive
    most in the first such block, at most as many from each window of 4 x 4 tokens as an even share, rounded up; where
    windows have too few left, the best of the frame stand in (the published code stops there). A dropped row goes into
    the mean of the kept one with the nearest embedding by cosine. In the decoder the last token of the question then
    ranks a sample's video tokens by attention among themselves, of the layer's own projections without M-RoPE, its
    heads' mean (github.com/Tencent/SelfEvolvingAgent, VScan, MIT). The defaults are the published ones for Qwen2.5-VL:
    layer 14 of 28, 11.1% of the tokens on average; 0.6 and 0.67 are those of RefCOCO, 50%. Its code never prunes a
    video; here a temporal patch is what a picture is there. The question ends as for `fastv`.
    """

    by_question = True

    @dataclass
    class Config:
        vscan: Scans = field(default_factory=Scans)

    @classmethod
    def problems(cls, config: Any, design: Any) -> Iterator[Problem]:
        for name in ("keep", "late"):
            yield from no_share(f"vscan.{name}", getattr(config.vscan, name), zero=False, one=True)
        if config.vscan.layer is not None and config.vscan.layer < 1:
            yield Problem("vscan.layer", f"{config.vscan.layer} has no layer before it; use 1 or more, or null")

    @classmethod
    def beyond(cls, config: Any, layers: int) -> Iterator[Problem]:
        yield from no_such_layer("vscan.layer", _late_layer(config.vscan, layers), layers)

    @classmethod
    def left(cls, config: Any, layers: int, frames: int, size: int) -> list[int]:
        own, late = config.vscan, _late_layer(config.vscan, layers)
        kept = frames * count_of(own.keep, size)
        return [kept] * late + [count_of(own.late, kept)] * (layers - late)

    def looks_at(self, blocks: Sequence[int]) -> Collection[int]:
        return {blocks[0], blocks[-1]}

    def merge(self, frames: Frames) -> Merge:
        first, last = (frames.sights[block].received for block in (min(frames.sights), max(frames.sights)))
        count = count_of(self.config.vscan.keep, frames.size)
        everywhere = highest(last, count - count // 2)
        kept = everywhere | best_by_window(first, everywhere, count // 2, frames.columns)
        return Merge(kept, nearest(frames.x, places_of(~kept), places_of(kept)))

    def merged(self, own: Tensor, total: Tensor, count: Tensor) -> Tensor:
        """The mean of a row and those added."""
        return (own + total) / (count + 1)

    def after_layer(self, layer: int, x: Tensor, plan: Any) -> tuple[Tensor, Any]:
        if layer + 1 != _late_layer(self.config.vscan, len(plan.layers)):
            return x, plan
        is_video = plan.layout.is_video
        score = attention_of_question(plan.next_heads(x), plan, lambda places, asking: is_video[places])
        index = strongest(plan.layout, score, self.config.vscan.late)
        return x[index], plan.keep(index)


def _late_layer(own: Scans, layers: int) -> int:
    return layers // 2 if own.layer is None else own.layer


def best_by_window(score: Tensor, taken: Tensor, count: int, columns: int) -> Tensor:
    """[F, P] bool: the `count` best of each frame by score [F, P] that are not taken [F, P], an even share by window.

    `columns` are those of the frame's P tokens, row by row.
    """
    place = torch.arange(score.shape[1], device=score.device)
    window = place // columns // WINDOW * -(-columns // WINDOW) + place % columns // WINDOW
    windows = int(window[-1]) + 1
    free = score.masked_fill(taken, -torch.inf)
    rank = torch.empty_like(score, dtype=torch.int64)
    for number in range(windows):
        own = (window == number).nonzero().flatten()
        rank[:, own] = free[:, own].argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    order = free.argsort(dim=-1, descending=True, stable=True)
    over = (taken | (rank >= -(-count // windows))).gather(1, order)
    chosen = order.gather(1, over.int().argsort(dim=-1, stable=True))[:, :count]
    return torch.zeros_like(taken).scatter(1, chosen, True)
