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
    compressed, inside its sample, where that is later than its smallest and greatest key. Waits for the device.
    Raises ValueError where a block is empty or crosses two samples, the offsets do not span the keys, or what is given
    beside them is not as said.
    """
    offsets, cu_seqlens = offsets.long(), cu_seqlens.long()
    keys = torch.arange(_count_keys(cu_seqlens, order, query_index), device=offsets.device)
    _check_counts(len(keys), len(offsets) - 1, order, start, end)
    block_at_place = torch.searchsorted(offsets[1:], keys, right=True)
    block_of_key = block_at_place if order is None else torch.empty_like(keys).scatter_(0, order.long(), block_at_place)
    position = keys if query_index is None else query_index.long()
    sample = torch.searchsorted(cu_seqlens[1:], keys, right=True)
    bounds = torch.cat([block_at_place, block_at_place.new_tensor([len(offsets) - 1])])
    first_block = bounds[cu_seqlens]
    smallest, greatest = _extent(offsets, order)
    end_given = end is not None
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
    whole, aligned = (offsets[0] == 0) & (offsets[-1] == len(keys)), torch.isin(cu_seqlens, offsets).all()
    asked = {
        "the offsets must go from 0 to the number of keys": whole,
        "every bound of cu_seqlens must be among the offsets, else a block crosses two samples": aligned,
    }
    if query_index is not None:
        asked["query_index must ascend"] = (position.diff() > 0).all()
    if order is not None:
        asked["order must be a permutation of each sample's keys"] = _permutes(order.long(), sample)
    if end_given:
        asked["end must lie inside the block's sample"] = (end < cu_seqlens[1:][sample[smallest]]).all()
    is_late, *sizes = _sizes(offsets, asked, late, tensors["last_block"] - tensors["first_block"] + 1)
    if is_late and order is None:
        order = keys
    narrow = {name: x.to(torch.int32).contiguous() for name, x in tensors.items()}
    return Blocks(**narrow, order=None if order is None else order.to(torch.int32).contiguous(), sizes=sizes)


def uniform_blocks(cu_seqlens: Tensor, block_size: int) -> Blocks:
    """Blocks of `block_size` tokens from the start of each sample; the last of a sample may be shorter."""
    if block_size < 1:
        raise ValueError(f"block_size={block_size} is not positive")
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


def _count_keys(cu_seqlens: Tensor, order: Tensor | None, query_index: Tensor | None) -> int:
    """T; ValueError where cu_seqlens does not ascend from 0, or what is given beside it names keys outside."""
    asked = [cu_seqlens[-1], (cu_seqlens[0] == 0) & (cu_seqlens.diff() >= 0).all()]
    given = {"order": order, "query_index": query_index}
    named = {name: x for name, x in given.items() if x is not None and len(x)}
    asked += [((x >= 0) & (x < cu_seqlens[-1])).all() for x in named.values()]
    keys, ascends, *inside = torch.stack([answer.long() for answer in asked]).tolist()
    if not ascends:
        raise ValueError("cu_seqlens must ascend from 0")
    for name, holds in zip(named, inside, strict=True):
        if not holds:
            raise ValueError(f"{name} names a key outside of 0 to {keys - 1}")
    return keys


def _check_counts(keys: int, blocks: int, order: Tensor | None, start: Tensor | None, end: Tensor | None) -> None:
    if keys and blocks < 1:
        raise ValueError(f"offsets name no block, but there are {keys} keys")
    for name, given, count in (("order", order, keys), ("start", start, blocks), ("end", end, blocks)):
        if given is not None and given.shape != (count,):
            raise ValueError(f"{name} must be [{count}], not {list(given.shape)}")


def _permutes(order: Tensor, sample: Tensor) -> Tensor:
    """Whether `order` [T] int64 moves keys inside their samples only, each to one place."""
    hit = torch.zeros_like(sample).scatter_(0, order, 1)
    return hit.all() & (sample[order] == sample).all()


def _sizes(offsets: Tensor, asked: dict[str, Tensor], late: Tensor, begun: Tensor) -> list[int]:
    """Whether a block is seen later than its keys, then Blocks.sizes; ValueError where something asked is not so."""
    if len(offsets) < 2:
        return [0, 0]
    lengths = offsets.diff()
    padded = torch.nn.functional.pad(begun, (0, -len(begun) % REACH_ROWS)).view(-1, REACH_ROWS)
    told = [lengths.amin(), *(answer.long() for answer in asked.values()), late.long(), lengths.amax()]
    shortest, *facts = torch.cat([torch.stack(told), padded.amax(1)]).tolist()
    if shortest < 1:
        raise ValueError(f"block {int(lengths.argmin())} is empty; offsets must increase")
    for message, holds in zip(asked, facts, strict=False):
        if not holds:
            raise ValueError(message)
    return facts[len(asked) :]
