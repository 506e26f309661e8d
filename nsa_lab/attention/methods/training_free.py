"""Published training-free methods: what they share. A method says which keys a row reads; attending is done here."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nsa_lab.attention.budget import Cost, mean_cost
from nsa_lab.attention.groups import Group, rows_that_fit
from nsa_lab.attention.methods.base import Method, Plan
from nsa_lab.attention.piecewise import over_groups
from nsa_lab.attention.trace import Trace
from nsa_lab.errors import Problem

Seen = Callable[[Tensor, Tensor], Tensor]
"""(rows [n], keys [m], int64 places in one sample) to [H or 1, n, m] bool; keys after a row are left out elsewhere."""


@dataclass(frozen=True)
class Choice:
    """seen: what each row of a sample reads. scored: keys scored to find it out, the mean over rows and heads."""

    seen: Seen
    scored: float = 0.0


class TrainingFree(Method):
    """Takes a sample's text and videos as one sequence, in the prefill; decoding attends densely to the whole cache.

    Each packed sample chooses alone. Queries and keys come after M-RoPE, and each query head chooses for itself, in
    float32 or wider and without gradient. `text_window` narrows the text rows of what was chosen. A subclass gives
    `choose`. Plain PyTorch under a mask, cut over rows: it says what a method would read, and is no faster for it; a
    block-sparse path on a GPU is left for later.
    """

    control = True

    @classmethod
    def problems(cls, config: Any, design: Any) -> Iterator[Problem]:
        if design.backend != "auto":
            yield Problem(
                "backend", f"{design.backend} is not read by method={design.method}, which is plain PyTorch; use auto"
            )

    def choose(self, q: Tensor, k: Tensor) -> Choice:
        """What the rows of one sample read: q [T, H, D], k [T, G, D]. Every row must read itself."""
        raise NotImplementedError

    def prefill(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, plan: Plan) -> Tensor:
        parts, spent = [], []
        for begin, end in pairwise(plan.layout.cu_seqlens.tolist()):
            own_q, own_k, own_v, video = (part[begin:end] for part in (q, k, v, plan.layout.is_video))
            choice = self._choice(own_q, own_k)
            seen = self._narrowed(choice.seen, ~video)
            parts.append(attend_where(seen, own_q, own_k, own_v, self.scale))
            if plan.trace.wants("cost"):
                places = video.nonzero().flatten()
                spent.append((len(places), Cost(keys_read(seen, places, q.shape[1]), scored=choice.scored)))
        plan.trace.record(self.layer, "cost", spent)
        return torch.cat(parts) if parts else q

    def cost(self, trace: Trace, lengths: Tensor) -> Cost:
        """The mean over the video queries and heads, as counted in the forward.

        Keys are the video tokens among what was read, of earlier videos of the sample too; text is left out, as it is
        for dense attention.
        """
        return mean_cost(trace.found[self.layer, "cost"])

    def _choice(self, q: Tensor, k: Tensor) -> Choice:
        wide = torch.promote_types(q.dtype, torch.float32)
        with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
            return self.choose(q.to(wide), k.to(wide))

    def _narrowed(self, seen: Seen, text: Tensor) -> Seen:
        window = self.text_window
        if window is None:
            return seen
        return lambda rows, keys: seen(rows, keys) & ~(text[rows, None] & (keys <= rows[:, None] - window))


def attend_where(seen: Seen, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Causal attention of one sample to the keys that are seen: q [T, H, D], k and v [T, G, D] to [T, H, D]."""

    def piece(group: Group, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows, keys = group.rows[0], group.keys[0]
        mask = seen(rows, keys) & (keys <= rows[:, None])
        repeat = q.shape[2] // k.shape[2]
        q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(repeat, 2), v.repeat_interleave(repeat, 2)))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[None], scale=scale).transpose(1, 2)

    places = torch.arange(len(q), device=q.device)
    groups = [Group(rows[None], places[None, : int(rows[-1]) + 1]) for rows in _cut(places, len(q), q.shape[1])]
    return over_groups(piece, groups, q, k, v)


def keys_read(seen: Seen, places: Tensor, heads: int) -> float:
    """How many of the tokens at `places` [n] each of them reads, the mean over them and heads."""
    total = 0
    for rows in _cut(places, len(places), heads):
        mask = seen(rows, places) & (places <= rows[:, None])
        total += int(mask.sum()) * (heads // len(mask))
    return total / max(1, len(places) * heads)


def in_blocks(table: Tensor, size: int) -> Seen:
    """What `table` [H, nQ, nK] bool says of blocks of `size` tokens, counted from the sample's first."""
    return lambda rows, keys: table[:, rows // size][:, :, keys // size]


def _cut(rows: Tensor, keys: int, heads: int) -> tuple[Tensor, ...]:
    """`rows` in stretches whose logits, twice, and mask fit in a piece."""
    return rows.split(rows_that_fit(heads * keys * 9)) if len(rows) else ()
