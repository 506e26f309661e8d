"""The geometry all kernels share: T keys cut into N blocks, and where the queries stand among them."""

from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

REACH_ROWS = 4096


@dataclass(frozen=True)
class Blocks:
    """Blocks of packed keys, as int32 tensors on one device. Make one with `blocks_from_offsets`, once per batch.

    offsets [N + 1]: where each block begins in block order. order [T]: the key at each place of block order, or
    None where block order is packed order and every block is seen once its last key has passed.
    start, end [N]: the query position from which on a block may be selected, and from which on it may be compressed.
    position [Tq]: the key that is each query's own token, ascending. sample_start [Tq]: first key of its sample.
    block_of_query [Tq]: the query's own block. first_block [Tq]: first block of its sample. last_block [Tq]: the last
    block that has begun at the query.
    closed_below [Tq]: every block of the sample below this one has ended at the query.
    query_at [T + 1]: how many queries stand before each key. query_stop [T]: past the last query of the key's sample.
    sizes: what the host must know to launch kernels: tokens of the longest block, then for every REACH_ROWS queries
    the most blocks of its sample that have begun at one of them.
    """

    offsets: Tensor
    order: Tensor | None
    start: Tensor
    end: Tensor
    position: Tensor
    sample_start: Tensor
    block_of_query: Tensor
    first_block: Tensor
    last_block: Tensor
    closed_below: Tensor
    query_at: Tensor
    query_stop: Tensor
    sizes: list[int]

    def flat(self) -> list[Tensor]:
        """The tensors in the order of the fields, `order` last where there is one; `Blocks.join` puts them back."""
        tensors = [getattr(self, name) for name in _TENSORS]
        return tensors if self.order is None else [*tensors, self.order]

    @staticmethod
    def join(flat: list[Tensor], sizes: list[int]) -> "Blocks":
        named = dict(zip(_TENSORS, flat, strict=False))
        order = flat[len(_TENSORS)] if len(flat) > len(_TENSORS) else None
        return Blocks(**named, order=order, sizes=sizes)

    @property
    def longest(self) -> int:
        return self.sizes[0]

    def most(self, begin: int, end: int) -> int:
        """At most how many blocks of its sample have begun at a query of begin..end."""
        return max(self.sizes[1 + begin // REACH_ROWS : 2 + (end - 1) // REACH_ROWS], default=0)

    @property
    def compiled_for(self) -> tuple[Any, ...]:
        """What kernels are compiled for: sizes in powers of two, permuted or not, whether every key is a query."""
        longest, *most = (max(0, size - 1).bit_length() for size in self.sizes)
        return longest, tuple(sorted(set(most))), self.order is None, self.identity

    @property
    def num_blocks(self) -> int:
        return len(self.end)

    @property
    def num_queries(self) -> int:
        return len(self.position)

    @property
    def identity(self) -> bool:
        """Every key is a query, so that a query's number is its position."""
        return self.num_queries == self.num_keys

    @property
    def num_keys(self) -> int:
        return len(self.query_at) - 1


_TENSORS = tuple(field.name for field in fields(Blocks) if field.name not in ("order", "sizes"))


def blocks_from_offsets(
    offsets: Tensor,
    cu_seqlens: Tensor,
    *,
    order: Tensor | None = None,
    query_index: Tensor | None = None,
    start: Tensor | None = None,
    end: Tensor | None = None,
) -> Blocks:
    """Blocks that `offsets` [N + 1] cut from samples `cu_seqlens` [S + 1]; int tensors on one device.

    order [T]: a permutation of the keys inside each sample, applied before cutting. query_index [Tq]: the keys that
    are queries, ascending; all of them by default. start, end [N]: from which token on a block may be selected, and
    compressed, inside its sample, where that is later than its smallest and greatest key. Waits for the device once.
    Raises ValueError where a block is empty or crosses two samples.
    """
    offsets, cu_seqlens = offsets.long(), cu_seqlens.long()
    keys = torch.arange(int(cu_seqlens[-1]), device=offsets.device)
    block_at_place = torch.searchsorted(offsets[1:], keys, right=True)
    block_of_key = block_at_place if order is None else torch.empty_like(keys).scatter_(0, order.long(), block_at_place)
    position = keys if query_index is None else query_index.long()
    sample = torch.searchsorted(cu_seqlens[1:], keys, right=True)
    bounds = torch.cat([block_at_place, block_at_place.new_tensor([len(offsets) - 1])])
    first_block = bounds[cu_seqlens]
    smallest, greatest = _extent(offsets, order)
    start = smallest if start is None else torch.maximum(start.long(), smallest)
    end = greatest if end is None else torch.maximum(end.long(), greatest)
    late = (start != smallest).any() | (end != greatest).any()
    query_at = torch.searchsorted(position, torch.arange(len(keys) + 1, device=keys.device))
    sample_of_query = sample[position]
    ended = torch.searchsorted(end.cummax(0).values, position, right=True) if len(end) else position
    tensors = {
        "offsets": offsets,
        "start": start,
        "end": end,
        "position": position,
        "sample_start": cu_seqlens[sample_of_query],
        "block_of_query": block_of_key[position],
        "first_block": first_block[sample_of_query],
        "last_block": block_of_key.cummax(0).values[position] if len(keys) else position,
        "closed_below": ended,
        "query_at": query_at,
        "query_stop": query_at[cu_seqlens[1:]][sample],
    }
    late, *sizes = _sizes(offsets, cu_seqlens, late, tensors["last_block"] - tensors["first_block"] + 1)
    if late and order is None:
        order = keys
    narrow = {name: x.to(torch.int32).contiguous() for name, x in tensors.items()}
    return Blocks(**narrow, order=None if order is None else order.to(torch.int32).contiguous(), sizes=sizes)


def uniform_blocks(cu_seqlens: Tensor, block_size: int) -> Blocks:
    """Blocks of `block_size` tokens from the start of each sample; the last of a sample may be shorter."""
    bounds = cu_seqlens.tolist()
    cuts = [cut for a, b in pairwise(bounds) for cut in range(a, b, block_size)]
    offsets = torch.tensor([*cuts, bounds[-1]], device=cu_seqlens.device)
    return blocks_from_offsets(offsets, cu_seqlens)


def _extent(offsets: Tensor, order: Tensor | None) -> tuple[Tensor, Tensor]:
    if order is None:
        return offsets[:-1], offsets[1:] - 1
    lengths = offsets.diff()
    place = torch.repeat_interleave(torch.arange(len(lengths), device=offsets.device), lengths)
    wide = order.long()
    start = torch.full_like(lengths, len(order)).scatter_reduce(0, place, wide, "amin")
    end = torch.full_like(lengths, -1).scatter_reduce(0, place, wide, "amax")
    return start, end


def _sizes(offsets: Tensor, cu_seqlens: Tensor, late: Tensor, begun: Tensor) -> list[int]:
    """Whether a block is seen later than its keys, then Blocks.sizes; ValueError where offsets do not cut samples."""
    if len(offsets) < 2:
        return [0, 0]
    lengths = offsets.diff()
    split = torch.isin(cu_seqlens, offsets).all()
    padded = torch.nn.functional.pad(begun, (0, -len(begun) % REACH_ROWS)).view(-1, REACH_ROWS)
    facts = torch.cat([torch.stack([lengths.amin(), split.long(), late.long(), lengths.amax()]), padded.amax(1)])
    shortest, aligned, *sizes = facts.tolist()
    if shortest < 1:
        raise ValueError(f"block {int(lengths.argmin())} is empty; offsets must increase")
    if not aligned:
        raise ValueError("a block crosses two samples; every bound of cu_seqlens must be among the offsets")
    return sizes
