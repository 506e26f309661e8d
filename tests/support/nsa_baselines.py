"""Training-free methods in tests: layouts, a prefill of one layer, dense attention under a mask made token by token."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from nsa_lab.attention.budget import Cost
from nsa_lab.attention.dims import HeadDims
from nsa_lab.attention.methods import Method
from nsa_lab.attention.methods.pairs import Choice
from nsa_lab.attention.trace import Trace
from nsa_lab.config import load_config
from nsa_lab.layout import TokenLayout, layout_from_token_ids
from nsa_lab.model.plan import AttentionPlan
from nsa_lab.plugin import build
from nsa_testing import TEXT, VIDEO, assert_close, random_heads

Part = int | tuple[int, int, int]
"""So many text tokens, or a video of frames x rows x columns."""

LAYOUTS: dict[str, Sequence[Sequence[Part]]] = {
    "odd": [[3, (3, 3, 3), 4], [(1, 1, 1), 2], [5], [2, (4, 2, 3), 5]],
    "long text": [[2, (2, 2, 3), 47], [39, (3, 1, 3), 1]],
    "two videos": [[3, (4, 2, 3), 5, (3, 3, 3), 8], [1, (2, 2, 2), 2]],
}
"""Packed samples: a ragged tail, one token, no video; text longer than any window here; two videos in one sample."""

HEADS = [(4, 2, 16), (7, 1, 8)]
"""Query heads, key/value heads, head dim."""


def layout_of(samples: Sequence[Sequence[Part]]) -> TokenLayout:
    """Samples of text and videos in any order, packed into one row."""
    ids: list[int] = []
    positions: list[int] = []
    grids = [part for sample in samples for part in sample if isinstance(part, tuple)]
    for sample in samples:
        own = [VIDEO if isinstance(p, tuple) else TEXT for p in sample for _ in range(_tokens(p))]
        ids, positions = ids + own, [*positions, *range(len(own))]
    patches = torch.tensor([[t, 2 * h, 2 * w] for t, h, w in grids], dtype=torch.int64).reshape(-1, 3)
    return layout_from_token_ids(torch.tensor([ids]), VIDEO, patches, text_positions=torch.tensor([positions]))


def _tokens(part: Part) -> int:
    return part if isinstance(part, int) else part[0] * part[1] * part[2]


def make_method(heads: tuple[int, int, int], *overrides: str) -> Method:
    """The method of layer 0 under `attention.` + each of `overrides`."""
    attention = load_config(None, ["tasks.needle.enabled=true", *(f"attention.{o}" for o in overrides)]).attention
    h, g, d = heads
    made: Method = build(attention, "method", attention, HeadDims(h * d, h, g, d), 0)
    return made


def prefill(method: Method, layout: TokenLayout, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Cost]:
    """What the layer gives [T, H, D], and what it says that a video query read."""
    plan = AttentionPlan(layout, (1, len(layout.rows)), Trace("cost"))
    out = method.prefill(q.flatten(1), q, k, v, plan)
    return out, method.cost(plan.trace, layout.grids.prod(1))


def dense_under(mask: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of one sample to the keys that mask [H, T, T] shows, head by head: [T, H, D]."""
    repeat = q.shape[1] // k.shape[1]
    rows = []
    for h in range(q.shape[1]):
        logits = (q[:, h] @ k[:, h // repeat].T) * q.shape[-1] ** -0.5
        rows.append(logits.masked_fill(~mask[h], -torch.inf).softmax(-1) @ v[:, h // repeat])
    return torch.stack(rows, 1)


def assert_follows(
    method: Method, layout: TokenLayout, heads: Any, mask_of: Callable[[Tensor, Tensor], Tensor]
) -> Cost:
    """Forward, backward and video keys per video query are those of the masks that `mask_of`(q, k) gives a sample."""
    plain, own = (random_heads(len(layout.rows), len(layout.rows), heads, torch.float64) for _ in range(2))
    spans = list(pairwise(layout.cu_seqlens.tolist()))
    masks = [mask_of(plain.q[a:b].detach(), plain.k[a:b].detach()) for a, b in spans]
    expected = torch.cat([dense_under(m, *(x[a:b] for x in plain.all)) for m, (a, b) in zip(masks, spans, strict=True)])
    found, cost = prefill(method, layout, *own.all)
    assert_close(found, expected, 1e-12, "forward")
    weights = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    for one, other in zip(own.all, plain.all, strict=True):
        assert_close(one.grad, other.grad, 1e-11, "backward")
    videos = [layout.is_video[a:b] for a, b in spans]
    read = [mask[:, video][..., video].sum(-1) for mask, video in zip(masks, videos, strict=True)]
    assert abs(cost.keys - torch.cat(read, 1).double().mean().item()) < 1e-9
    return cost


def causal(count: int) -> Tensor:
    """[T, T] bool: the keys at or before each row."""
    return torch.ones(count, count, dtype=torch.bool).tril()


def mask_read(choice: Choice, heads: int, count: int) -> Tensor:
    """[H, T, T] bool: the keys at or before each row that are read."""
    place = torch.arange(count)
    return choice.reads(torch.arange(heads)[:, None, None], place[:, None], place) & causal(count)


def peaked_heads(count: int, heads: tuple[int, int, int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """q [T, H, D], k and v [T, G, D] whose attention lies on few keys, as that of models does."""
    q, k, v = (x.detach() for x in random_heads(count, count, heads, torch.float64, seed).all)
    return 3 * q, k, v
