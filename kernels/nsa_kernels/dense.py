"""What the references share: attention under a dense mask, differentiable and in any precision."""

import torch
from torch import Tensor

from nsa_kernels.blocks import Blocks


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """q [Tq, H, D] against k, v [n, G, D] where seen [Tq, 1 or H, n]; a row that sees nothing is zero. [Tq, H, D]."""
    p = probabilities(q, k, seen, scale, bias)
    return torch.einsum("thn,nhd->thd", p.to(v.dtype), per_head(v, q.shape[1]))


def probabilities(q: Tensor, k: Tensor, seen: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """[Tq, H, n] in float32 or wider; zero where nothing is seen."""
    return softmax(logits(q, k, scale, bias), seen)


def logits(q: Tensor, k: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    s = torch.einsum("thd,nhd->thn", q, per_head(k, q.shape[1])).to(torch.promote_types(q.dtype, torch.float32)) * scale
    return s if bias is None else s + bias.to(s.dtype)


def softmax(s: Tensor, seen: Tensor) -> Tensor:
    low = torch.finfo(s.dtype).min
    return s.masked_fill(~seen, low).softmax(-1).masked_fill(~seen, 0)


def per_head(x: Tensor, heads: int) -> Tensor:
    """[n, G, D] to [n, H, D]: each key/value head for its group of query heads."""
    return x.repeat_interleave(heads // x.shape[1], 1)


def block_of_key(blocks: Blocks) -> Tensor:
    """[T] int64: the block of each key."""
    lengths = blocks.offsets.diff().long()
    at_place = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    return at_place if blocks.order is None else torch.empty_like(at_place).scatter_(0, blocks.order.long(), at_place)


def of_sample(blocks: Blocks) -> Tensor:
    """[Tq, N] bool: the block belongs to the query's sample."""
    start = blocks.sample_start[:, None]
    return (blocks.start[None] >= start) & (blocks.start[None] < _sample_stop(blocks)[:, None])


def closed(blocks: Blocks) -> Tensor:
    """[Tq, N] bool: the block is of the query's sample and has ended at or before the query."""
    return of_sample(blocks) & (blocks.end[None] <= blocks.position[:, None])


def begun(blocks: Blocks) -> Tensor:
    """[Tq, N] bool: the block is of the query's sample and has begun at or before the query."""
    return of_sample(blocks) & (blocks.start[None] <= blocks.position[:, None])


def _sample_stop(blocks: Blocks) -> Tensor:
    """[Tq]: at least one past the last key that matters: the start of the next sample that has queries."""
    starts = torch.unique(blocks.sample_start)
    following = torch.cat([starts[1:], starts.new_tensor([blocks.num_keys])])
    return following[torch.searchsorted(starts, blocks.sample_start)]
