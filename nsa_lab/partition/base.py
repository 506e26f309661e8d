"""What a partition is: blocks that cover the context's tokens exactly once and never cross two segments."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

Causality = Literal["token", "frame", "look_ahead", "video"]


@dataclass(frozen=True)
class Context:
    """The keys that sparse branches may see, in packed order, and where the video queries stand among them.

    token_index: [T] int64, place of each key in the layout's packed order.
    query_index: [Tq] int64 ascending, the key that is each video query's own token.
    cu_seqlens: [S + 1] int64 over the keys; query_cu_seqlens: [S + 1] int64 over the queries.
    segment: [T] int64, counts runs that no block may cross: samples, videos, runs of text.
    frame: [T] int64, counts frames (temporal patches) inside the batch; one number for a whole run of text.
    """

    token_index: Tensor
    query_index: Tensor
    cu_seqlens: Tensor
    query_cu_seqlens: Tensor
    segment: Tensor
    frame: Tensor

    @cached_property
    def sample_start(self) -> Tensor:
        """[Tq] int64: the first key of each query's sample."""
        return self.cu_seqlens[:-1].repeat_interleave(self.query_cu_seqlens.diff())

    @cached_property
    def spans(self) -> list[tuple[int, int, int, int]]:
        """Per sample: first query, past-the-last query, first key, past-the-last key, as plain integers."""
        queries, keys = self.query_cu_seqlens.tolist(), self.cu_seqlens.tolist()
        return list(zip(queries[:-1], queries[1:], keys[:-1], keys[1:], strict=True))

    @cached_property
    def host_query_index(self) -> list[int]:
        return self.query_index.tolist()


@dataclass(frozen=True)
class Partition:
    """Blocks of a context's T keys.

    block_id: [T] int64, the block of each key. offsets: [N + 1] int64, where each block begins in block order.
    perm: [T] int64, key at each place of block order, or None where block order is packed order.
    block_end, block_start: [N] int64, the greatest and smallest key of a block: a query sees a pooled block once
    `block_end` is its own token or earlier. cu_blocks: [S + 1] int64, where each sample's blocks begin.
    """

    block_id: Tensor
    offsets: Tensor
    perm: Tensor | None
    block_start: Tensor
    block_end: Tensor
    cu_blocks: Tensor
    max_length: int
    causality: Causality

    @property
    def num_blocks(self) -> int:
        return len(self.block_end)

    @cached_property
    def lengths(self) -> Tensor:
        """[N] int64: tokens per block."""
        return self.offsets.diff()

    @cached_property
    def members(self) -> Tensor:
        """[N, L] int64: the keys of each block, -1 past its length."""
        place = self.offsets[:-1, None] + torch.arange(self.max_length, device=self.offsets.device)
        inside = place < self.offsets[1:, None]
        keys = place if self.perm is None else self.perm[place.clamp(max=max(len(self.perm) - 1, 0))]
        return keys.masked_fill(~inside, -1)

    @cached_property
    def rank(self) -> Tensor:
        """[T] int64: place of each key inside its block."""
        place = torch.arange(len(self.block_id), device=self.block_id.device)
        if self.perm is not None:
            place = torch.empty_like(self.perm).scatter_(0, self.perm, place)
        return place - self.offsets[self.block_id]

    @cached_property
    def host_cu_blocks(self) -> list[int]:
        return self.cu_blocks.tolist()


Partitioner = Callable[[Context, int], Partition]


def partition_from_block_id(block_id: Tensor, cu_seqlens: Tensor, causality: Causality) -> Partition:
    """The partition that `block_id` [T] describes; ids count from 0 without gaps, sample by sample."""
    count = int(block_id.max()) + 1 if len(block_id) else 0
    lengths = torch.bincount(block_id, minlength=count)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    place = torch.arange(len(block_id), device=block_id.device)
    end = torch.full((count,), -1, device=block_id.device).scatter_reduce(0, block_id, place, "amax")
    start = torch.full((count,), len(block_id), device=block_id.device).scatter_reduce(0, block_id, place, "amin")
    ordered = bool((block_id.diff() >= 0).all())
    # The last key of a sample need not lie in its last block when blocks are permuted: count by block starts.
    sample_of_block = torch.bucketize(start, cu_seqlens[1:-1], right=True)
    blocks_per_sample = torch.bincount(sample_of_block, minlength=len(cu_seqlens) - 1)
    return Partition(
        block_id=block_id,
        offsets=offsets,
        perm=None if ordered else block_id.argsort(stable=True),
        block_start=start,
        block_end=end,
        cu_blocks=torch.cat([blocks_per_sample.new_zeros(1), blocks_per_sample.cumsum(0)]),
        max_length=int(lengths.max()) if count else 0,
        causality=causality,
    )


def check_partition(partition: Partition, context: Context, cap: int) -> None:
    """Raise ValueError unless the blocks cover the context exactly once, within segments, none longer than `cap`."""
    order = (
        partition.perm
        if partition.perm is not None
        else torch.arange(len(context.segment), device=context.segment.device)
    )
    if not torch.equal(order.sort().values, torch.arange(len(context.segment), device=order.device)):
        raise ValueError("the blocks do not cover every token exactly once")
    if partition.max_length > cap:
        raise ValueError(f"a block holds {partition.max_length} tokens, more than the cap of {cap}")
    first = context.segment[partition.block_start]
    if not torch.equal(first[partition.block_id], context.segment):
        raise ValueError("a block crosses two samples, two videos, or text and video")
