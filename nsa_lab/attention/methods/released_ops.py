"""One sample as VideoNSA's published code attends to it: the branches of the method `released`.

n tokens of the sample, H query heads, G key/value heads, D head dim, N blocks, R branches. P query heads as computed,
P / G of which read one key/value head.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nsa_lab.attention.budget import Cost

PIECE_BYTES = 2**28
"""What the logits of one piece of queries take at most. Backward computes pieces again: nothing n x n is held."""


@dataclass(frozen=True)
class Shape:
    """Settings of the branches: `count` blocks of `size` tokens are read, and the last `window` tokens."""

    size: int
    count: int
    window: int
    scale: float
    deviations: Any


def branches(q: Tensor, k: Tensor, v: Tensor, names: tuple[str, ...], shape: Shape) -> tuple[Tensor, dict[str, Tensor]]:
    """[n, H, R, D], and the keys that each query reads by branch, [n]: q [n, H, D], k and v [n, G, D]."""
    heads = q.shape[1]
    grouped = _grouped(q, k.shape[1], shape.deviations.foreign_heads)
    pooled_k, pooled_v = (_pooled(x, shape.size) for x in (k, v))
    lse = _lse(grouped.detach(), pooled_k.detach(), len(q), shape) if "selection" in names else None

    compute = partial(_piece, names=names, shape=shape, lse=lse)
    found = _each(compute, list(_pieces(grouped, k)), grouped, k, v, pooled_k, pooled_v)
    out = torch.cat([own for own, _ in found])
    counts = dict(zip(names, torch.cat([count for _, count in found], 1), strict=True))
    if shape.deviations.foreign_heads:
        out = (out[:, :heads] + out[:, heads : 2 * heads]) / 2
    return out, counts


def _piece(
    rows: slice,
    grouped: Tensor,
    k: Tensor,
    v: Tensor,
    pooled_k: Tensor,
    pooled_v: Tensor,
    *,
    names: tuple[str, ...],
    shape: Shape,
    lse: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """[C, P, R, D] of the queries `rows`, and how many keys each reads, [R, C] float64."""
    outputs, counts = [], []
    for name in names:
        seen = MASKS[name](rows, grouped, pooled_k, lse, len(k), shape)
        keys = (pooled_k, pooled_v) if name == "compression" else (k, v)
        outputs.append(attend(grouped[rows], *keys, seen, shape.scale))
        counts.append(seen.sum(-1).double().mean(1))
    return torch.stack(outputs, 2), torch.stack(counts)


def _each(compute: Callable[..., Any], pieces: list[slice], *inputs: Tensor) -> list[Any]:
    """`compute` of every piece; of several, the backward pass computes each again instead of keeping its weights."""
    if len(pieces) > 1 and torch.is_grad_enabled():
        compute = partial(checkpoint, compute, use_reentrant=False, preserve_rng_state=False)
    return [compute(rows, *inputs) for rows in pieces]


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float) -> Tensor:
    """[C, P, D]: q [C, G, P/G, D] against k and v [m, G, D] where seen [C, G, m]; zero where nothing is seen."""
    hidden = ~seen[:, :, None]
    logits = torch.einsum("cgpd,mgd->cgpm", q, k) * scale
    weights = logits.masked_fill(hidden, torch.finfo(logits.dtype).min).softmax(-1).masked_fill(hidden, 0)
    return torch.einsum("cgpm,mgd->cgpd", weights, v).flatten(1, 2)


def dense_rows(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, reach: Tensor, scale: float) -> Tensor:
    """[n', H, D]: the queries `rows` [n'] of a sample, each against its last `reach` [n'] tokens; q [n, H, D]."""
    grouped, place = _grouped(q[rows], k.shape[1], foreign=False), torch.arange(len(k), device=k.device)

    def compute(piece: slice, grouped: Tensor, k: Tensor, v: Tensor) -> Tensor:
        own = rows[piece, None]
        seen = (place <= own) & (place > own - reach[piece, None])
        return attend(grouped[piece], k, v, seen[:, None].expand(-1, k.shape[1], -1), scale)

    outputs = _each(compute, list(_pieces(grouped, k)), grouped, k, v)
    return torch.cat(outputs) if outputs else q[rows]


def running_mean(v: Tensor, heads: int) -> Tensor:
    """[n, H, D]: what a query of zeros gets from dense causal attention to v [n, G, D]."""
    count = torch.arange(1, len(v) + 1, device=v.device, dtype=v.dtype)
    return (v.cumsum(0) / count[:, None, None]).repeat_interleave(heads // v.shape[1], 1)


def cost(counts: dict[str, Tensor], video: Tensor, blocks: int) -> Cost:
    """What the video queries [n] bool read."""
    mean = {name: float(own[video].double().mean()) for name, own in counts.items()}
    tokens = sum(value for name, value in mean.items() if name != "compression")
    return Cost(tokens, mean.get("compression", 0.0), blocks / 2 if "selection" in mean else 0.0)


def padded(heads: int) -> int:
    """The published code's query heads: twice as many, up to a power of two (28: 64)."""
    return 1 << (2 * heads - 1).bit_length()


def _grouped(q: Tensor, groups: int, foreign: bool) -> Tensor:
    """[n, G, P/G, D]; `foreign` doubles the heads and adds zeros up to a power of two."""
    if foreign:
        zeros = padded(q.shape[1]) - 2 * q.shape[1]
        q = torch.cat([q, q, q.new_zeros(len(q), zeros, q.shape[2])], 1)
    return q.unflatten(1, (groups, -1))


def _pooled(x: Tensor, size: int) -> Tensor:
    """[N, G, D]: means of x [n, G, D] over blocks, the last one's over what it has."""
    block = torch.arange(len(x), device=x.device) // size
    blocks = -(-len(x) // size)
    sums = x.new_zeros(blocks, *x.shape[1:]).index_add(0, block, x)
    return sums / torch.bincount(block, minlength=blocks).to(x.dtype)[:, None, None]


def _pieces(grouped: Tensor, k: Tensor) -> Iterator[slice]:
    per_query = grouped.shape[1] * grouped.shape[2] * len(k) * grouped.element_size()
    step = max(1, PIECE_BYTES // max(1, per_query))
    return (slice(first, first + step) for first in range(0, len(grouped), step))


def _visible(rows: slice, blocks: int, length: int, shape: Shape, device: torch.device) -> Tensor:
    """[C, N]: the blocks whose means the queries `rows` see."""
    place = torch.arange(length, device=device)[rows, None]
    last = (torch.arange(blocks, device=device) + 1) * shape.size - 1
    return last >= place if shape.deviations.reversed_mask else last.clamp(max=length - 1) <= place


def _lse(grouped: Tensor, pooled_k: Tensor, length: int, shape: Shape) -> Tensor:
    """[n, G, P/G]: the log-sum-exp over visible blocks that selection reads."""
    found = []
    for rows in _pieces(grouped, pooled_k):
        seen = _visible(rows, len(pooled_k), length, shape, grouped.device)[:, None, None]
        logits = torch.einsum("cgpd,mgd->cgpm", grouped[rows], pooled_k) * shape.scale
        found.append(logits.masked_fill(~seen, -torch.inf).logsumexp(-1))
    lse = torch.cat(found)
    if not shape.deviations.flat_scores:
        return lse
    return lse.flatten(1).t().reshape(lse.shape)


def _compression(rows: slice, q: Tensor, pooled_k: Tensor, lse: Any, length: int, shape: Shape) -> Tensor:
    seen = _visible(rows, len(pooled_k), length, shape, q.device)
    return seen[:, None].expand(-1, q.shape[1], -1)


def _window(rows: slice, q: Tensor, pooled_k: Tensor, lse: Any, length: int, shape: Shape) -> Tensor:
    place = torch.arange(length, device=q.device)
    own = place[rows, None]
    seen = (place <= own) & (place > own - shape.window)
    return seen[:, None].expand(-1, q.shape[1], -1)


@torch.no_grad()
def _selection(rows: slice, q: Tensor, pooled_k: Tensor, lse: Any, length: int, shape: Shape) -> Tensor:
    """[C, G, n]: the tokens up to the query of the best blocks up to its own; equal scores go to the earlier block."""
    deviations, place = shape.deviations, torch.arange(length, device=q.device)
    own, block = (place[rows] // shape.size)[:, None], torch.arange(len(pooled_k), device=q.device)
    logits = torch.einsum("cgpd,mgd->cgpm", q[rows], pooled_k) * shape.scale
    score = (logits - lse[rows, ..., None]).exp().sum(2)
    # Sums of probabilities never pass the number of heads, which the own block gets; without them it may lose.
    forced = float(q.shape[2]) if deviations.flat_scores or deviations.reversed_mask else torch.inf
    score = score.masked_fill((block == own)[:, None], forced).masked_fill((block > own)[:, None], -torch.inf)
    best = score.sort(dim=-1, descending=True, stable=True)
    taken = best.values[..., : shape.count] > -torch.inf
    chosen = torch.zeros_like(score, dtype=torch.bool).scatter(2, best.indices[..., : shape.count], taken)
    return chosen[:, :, place // shape.size] & (place <= place[rows, None, None])


MASKS = {"compression": _compression, "selection": _selection, "window": _window}
