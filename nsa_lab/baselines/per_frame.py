"""Reducers that work on each frame (temporal patch) alone, by what the vision tower's attention says of its tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nsa_lab.attention.methods.last_rows import best
from nsa_lab.baselines.reducer import Reducer, Sight
from nsa_lab.errors import NsaLabError


@dataclass(frozen=True)
class Frames:
    """A video's F frames of P tokens: their rows x [F, P, hidden], the grid's columns, and what the tower says.

    sights: by number of the block, received [F, P] and keys [F, P, D].
    """

    x: Tensor
    columns: int
    sights: Mapping[int, Sight]

    @property
    def size(self) -> int:
        return self.x.shape[1]


@dataclass(frozen=True)
class Merge:
    """kept [F, P] bool: the tokens that go on, as many in each frame. into [F, P] int64: the place in its frame of the
    kept token that a dropped one is added to, -1 for none and for kept ones."""

    kept: Tensor
    into: Tensor


class PerFrame(Reducer):
    """Merges before the decoder. A subclass says what stays and what is added to what; frames do not see each other."""

    control = True
    divisible = False

    def merge(self, frames: Frames) -> Merge:
        """What becomes of the tokens of one video, without gradient."""
        raise NotImplementedError

    def merged(self, own: Tensor, total: Tensor, count: Tensor) -> Tensor:
        """What a kept row `own` [n, hidden] becomes to which `count` [n, 1] rows of the sum `total` are added."""
        raise NotImplementedError

    def after_vision(self, x: Tensor, plan: Any) -> tuple[Tensor, Any]:
        layout = plan.layout
        if not len(layout.video_index):
            return x, plan
        if not plan.tower:
            raise NsaLabError(
                "this reducer chooses by the vision tower's attention, and the tower did not run; pass"
                " pixel_values_videos, not embeddings or features"
            )
        kept, into = ~layout.is_video, torch.full_like(layout.frame, -1)
        begin = 0
        for frames, rows, columns in layout.grids.tolist():
            numbers = torch.arange(begin, begin + frames * rows * columns, device=x.device)
            if len(numbers):
                places = layout.video_index[numbers].view(frames, -1)
                found = self._found(x, places, numbers.view(frames, -1), columns, plan.tower)
                kept[places] = found.kept
                into[places] = torch.where(found.into < 0, -1, places.gather(1, found.into.clamp(min=0)))
            begin += len(numbers)
        index = kept.nonzero().flatten()
        return self._add(x, into)[index], plan.keep(index)

    @torch.no_grad()
    def _found(self, x: Tensor, places: Tensor, numbers: Tensor, columns: int, tower: Mapping[int, Sight]) -> Merge:
        sights = {block: Sight(sight.received[numbers], sight.keys[numbers]) for block, sight in tower.items()}
        return self.merge(Frames(x.detach()[places], columns, sights))

    def _add(self, x: Tensor, into: Tensor) -> Tensor:
        """x [T, hidden] with dropped rows added to those at `into` [T]."""
        added = (into >= 0).nonzero().flatten()
        total = torch.zeros_like(x).index_add(0, into[added], x[added])
        count = x.new_zeros(len(x), 1).index_add(0, into[added], x.new_ones(len(added), 1))
        return torch.where(count > 0, self.merged(x, total, count.clamp(min=1)), x)


def highest(score: Tensor, count: int) -> Tensor:
    """[F, P] bool: the `count` highest of each frame's score [F, P]; of equal ones the earlier."""
    return best(score, torch.full((len(score),), count, device=score.device))


def places_of(chosen: Tensor) -> Tensor:
    """[F, n] int64, ascending: the places of chosen [F, P] bool, which has n in each frame."""
    return chosen.nonzero()[:, 1].view(len(chosen), -1)


def nearest(features: Tensor, dropped: Tensor, kept: Tensor) -> Tensor:
    """[F, P] int64: for each of the tokens dropped [F, n] the one of kept [F, m] with the nearest features by cosine.

    All are places in a frame; features [F, P, D]; -1 for the other tokens.
    """
    wide = F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)
    one, other = (wide.gather(1, places[..., None].expand(-1, -1, wide.shape[2])) for places in (dropped, kept))
    found = features.new_full(features.shape[:2], -1, dtype=torch.int64)
    if dropped.shape[1] and kept.shape[1]:
        found.scatter_(1, dropped, kept.gather(1, (one @ other.transpose(1, 2)).argmax(-1)))
    return found
