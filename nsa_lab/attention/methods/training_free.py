"""Published training-free methods: what they share. A method says which keys a row reads; attending is done here."""

import logging
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nsa_lab.attention.budget import Cost, mean_cost
from nsa_lab.attention.groups import Group, rows_that_fit
from nsa_lab.attention.methods.base import Method, Plan
from nsa_lab.attention.methods.pairs import Allowed, Choice
from nsa_lab.attention.methods.tiled import Attend, in_tiles, why_not_tiled
from nsa_lab.attention.piecewise import over_groups
from nsa_lab.attention.trace import Trace
from nsa_lab.errors import Problem

log = logging.getLogger(__name__)
_said: set[str] = set()


class TrainingFree(Method):
    """Takes a sample's text and videos as one sequence, in the prefill; decoding attends densely to the whole cache.

    Each packed sample chooses alone. Queries and keys come after M-RoPE, and each query head chooses for itself, in
    float32 or wider and without gradient. `text_window` narrows the text rows of what was chosen. A subclass gives
    `choose`. On a GPU tiles are walked that hold what was chosen (`tiled`); elsewhere, and with `backend=torch`, plain
    PyTorch under a mask, cut over rows, says what a method would read, and is no faster for it.
    """

    control = True

    @classmethod
    def problems(cls, config: Any, design: Any) -> Iterator[Problem]:
        if design.backend not in ("auto", "torch"):
            yield Problem(
                "backend",
                f"{design.backend} is not read by method={design.method}; use auto, or torch for plain PyTorch under a"
                " mask",
            )

    def choose(self, q: Tensor, k: Tensor) -> Choice:
        """What the rows of one sample read: q [T, H, D], k [T, G, D]. Every row must read itself."""
        raise NotImplementedError

    def prefill(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, plan: Plan) -> Tensor:
        parts, spent = [], []
        for begin, end in pairwise(plan.layout.cu_seqlens.tolist()):
            own_q, own_k, own_v, video = (part[begin:end] for part in (q, k, v, plan.layout.is_video))
            choice, allowed = self.chosen(own_q, own_k, video)
            parts.append(self.attend(choice, allowed, own_q)(own_q, own_k, own_v))
            if plan.trace.wants("cost"):
                places = video.nonzero().flatten()
                read = keys_read(choice, allowed, places, places, q.shape[1])
                spent.append((len(places), Cost(read, scored=choice.scored)))
        plan.trace.record(self.layer, "cost", spent)
        return torch.cat(parts) if parts else q

    def chosen(self, q: Tensor, k: Tensor, video: Tensor) -> tuple[Choice, Allowed]:
        """What the rows of one sample read, and what its text rows may: q [T, H, D], k [T, G, D], video [T] bool."""
        with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
            return self.choose(q, k), Allowed(~video, self.text_window)

    def attend(self, choice: Choice, allowed: Allowed, q: Tensor) -> Attend:
        """The attention of one sample to what was chosen, as it is computed where q [T, H, D] is."""
        reason = "backend=torch" if self.backend == "torch" else why_not_tiled(q)
        if reason is None:
            return in_tiles(choice, allowed, q.shape[1], self.scale, backward=torch.is_grad_enabled())
        if reason not in _said:
            _said.add(reason)
            log.info("training-free attention in plain PyTorch under a mask: %s", reason)
        return partial(attend_where, choice, allowed, self.scale)

    def cost(self, trace: Trace, lengths: Tensor) -> Cost:
        """The mean over the video queries and heads, as counted in the forward.

        Keys are the video tokens among what was read, of earlier videos of the sample too; text is left out, as it is
        for dense attention.
        """
        return mean_cost(trace.found[self.layer, "cost"])


def attend_where(choice: Choice, allowed: Allowed, scale: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of one sample to the keys that are read: q [T, H, D], k and v [T, G, D] to [T, H, D]."""

    def piece(group: Group, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = _mask(choice, allowed, group.rows[0], group.keys[0], q.shape[2])
        repeat = q.shape[2] // k.shape[2]
        q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(repeat, 2), v.repeat_interleave(repeat, 2)))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2)

    places = torch.arange(len(q), device=q.device)
    groups = [Group(rows[None], places[None, : int(rows[-1]) + 1]) for rows in _cut(places, len(q), q.shape[1])]
    return over_groups(piece, groups, q, k, v)


def keys_read(choice: Choice, allowed: Allowed, rows: Tensor, keys: Tensor, heads: int) -> float:
    """How many of the tokens at `keys` [m] the ones at `rows` [n] read, the mean over them and heads."""
    total = 0
    for some in _cut(rows, len(keys), heads):
        mask = _mask(choice, allowed, some, keys, heads)
        total += int(mask.sum()) * (heads * len(some) * len(keys) // mask.numel())
    return total / max(1, len(rows) * heads)


def _mask(choice: Choice, allowed: Allowed, rows: Tensor, keys: Tensor, heads: int) -> Tensor:
    """[H, n, m] bool, or [n, m] where all heads read the same."""
    head = torch.arange(heads, device=rows.device)[:, None, None]
    return choice.reads(head, rows[:, None], keys) & allowed(rows[:, None], keys)


def _cut(rows: Tensor, keys: int, heads: int) -> tuple[Tensor, ...]:
    """`rows` in stretches whose logits, twice, and mask fit in a piece."""
    return rows.split(rows_that_fit(heads * keys * 9)) if len(rows) else ()
