"""VisionZip (arXiv 2412.04467), in a form for Qwen2.5-VL: few dominant tokens of each frame, and means of the rest."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nsa_lab.baselines.per_frame import Frames, Merge, PerFrame, highest, nearest, places_of
from nsa_lab.baselines.reducer import count_of, no_share
from nsa_lab.errors import Problem


@dataclass
class Zip:
    """keep: the share of each frame's tokens that go on. contextual: which share of these are means of others."""

    keep: float = 0.1111
    contextual: float = 0.15625


class VisionZip(PerFrame):
    """Of each frame the tokens that its patches attend to most (dominant); the rest is added to a few of itself.

    Contextual tokens are evenly spaced among the rest; every other one's row is added, as a mean, to the contextual
    token whose key is nearest by cosine (github.com/dvlab-research/VisionZip, Apache-2.0). The defaults are its 54
    dominant and 10 contextual of 576 tokens; 0.2222 and 0.3333 are its 108 + 20 and 162 + 30. There a class token in
    CLIP's last block but one says what is dominant. Qwen's tower has none: it is the attention received in the last
    block in which a whole frame attends, and keys are those before rotary embedding, as CLIP has none. Each frame is a
    picture of its own: one budget for the whole video could leave frames out. A token that stands for several stays
    where it was. The choice knows no question, so that it serves all.
    """

    @dataclass
    class Config:
        visionzip: Zip = field(default_factory=Zip)

    @classmethod
    def problems(cls, config: Any, design: Any) -> Iterator[Problem]:
        yield from no_share("visionzip.keep", config.visionzip.keep, zero=False, one=True)
        yield from no_share("visionzip.contextual", config.visionzip.contextual, zero=True, one=True)

    @classmethod
    def left(cls, config: Any, layers: int, frames: int, size: int) -> list[int]:
        return [frames * count_of(config.visionzip.keep, size)] * layers

    def looks_at(self, blocks: Sequence[int]) -> Collection[int]:
        return blocks[-1:]

    def merge(self, frames: Frames) -> Merge:
        own, (sight,) = self.config.visionzip, frames.sights.values()
        count = count_of(own.keep, frames.size)
        contextual = round(own.contextual * count)
        dominant = highest(sight.received, count - contextual)
        rest = places_of(~dominant)
        if not contextual:
            return Merge(dominant, torch.full_like(dominant, -1, dtype=torch.int64))
        targets = rest[:, :: max(1, rest.shape[1] // contextual)][:, :contextual]
        kept = dominant.scatter(1, targets, True)
        return Merge(kept, nearest(sight.keys, places_of(~kept), targets))

    def merged(self, own: Tensor, total: Tensor, count: Tensor) -> Tensor:
        """A row and the mean of those added, which makes it longer, as published."""
        return own + total / count
