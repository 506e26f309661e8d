"""What a partition is: blocks that cover the context's tokens exactly once and never cross two segments."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from nsa_lab.errors import Problem
from nsa_lab.layout import on_host
from nsa_lab.plugin import Plugin

Causality = Literal["token", "frame", "look_ahead", "video"]


@dataclass(frozen=True)
class Context:
    """The keys that sparse branches may see, in packed order, and where the video queries stand among them.

    token_index: [T] int64, place of each key in the layout's packed order.
    query_index: [Tq] int64 ascending, the key that is each video query's own token.
    cu_seqlens: [S + 1] int64 over the keys; query_cu_seqlens: [S + 1] int64 over the queries.
    segment: [T] int64, counts runs that no block may cross: samples, videos, runs of text.
    frame: [T] int64, counts frames (temporal patches) inside the batch; one number for a whole run of text.
    frame_grid: [T, 2] int64, rows and columns of the key's frame in tokens (row-major); zeros for text.
    cell: [T] int64, place of the key in its frame's whole grid, row by row; of text, in its run.
    """

    token_index: Tensor
    query_index: Tensor
    cu_seqlens: Tensor
    query_cu_seqlens: Tensor
    segment: Tensor
    frame: Tensor
    frame_grid: Tensor
    cell: Tensor

    def of_queries(self, part: slice) -> "Context":
        """The same keys for some of the queries: those whose numbers are in `part`."""
        bounds = self.query_cu_seqlens.clamp(part.start, part.stop) - part.start
        return replace(self, query_index=self.query_index[part], query_cu_seqlens=bounds)

    @cached_property
    def sample_start(self) -> Tensor:
        """[Tq] int64: the first key of each query's sample."""
        return on_host(lambda own: own.cu_seqlens[:-1].repeat_interleave(own.query_cu_seqlens.diff()), self)

    @cached_property
    def spans(self) -> list[tuple[int, int, int, int]]:
        """Per sample: first query, past-the-last query, first key, past-the-last key, as plain integers."""
        return on_host(_spans, self)

    @cached_property
    def host_query_index(self) -> list[int]:
        return on_host(lambda context: context.query_index.tolist(), self)


def _spans(context: Context) -> list[tuple[int, int, int, int]]:
    queries, keys = context.query_cu_seqlens.tolist(), context.cu_seqlens.tolist()
    return list(zip(queries[:-1], queries[1:], keys[:-1], keys[1:], strict=True))


@dataclass(frozen=True)
class Partition:
    """Blocks of a context's T keys.

    block_id: [T] int64, the block of each key. offsets: [N + 1] int64, where each block begins in block order.
    perm: [T] int64, key at each place of block order, or None where block order is packed order.
    block_end: [N] int64, a query sees the pooled block, and may select it, once this key is its own or earlier: the
    block's greatest key, or a later one where only then is known what the block holds (where content opens blocks, the
    first key of the next).
    block_start: [N] int64, from this key on a block may be forced: its smallest key, or later for the same reason.
    cu_blocks: [S + 1] int64, where each sample's blocks begin.
    confidence: [N] float, how sure a learned partitioner was of each block's opening, with gradient; 1 opens a video.
    auxiliary_loss: scalar, already weighted, added to the training loss.
    statistics: what the partitioner says of itself; logged as `partition/<name>`.
    """

    block_id: Tensor
    offsets: Tensor
    perm: Tensor | None
    block_start: Tensor
    block_end: Tensor
    cu_blocks: Tensor
    max_length: int
    causality: Causality
    confidence: Tensor | None = None
    auxiliary_loss: Tensor | None = None
    statistics: dict[str, Tensor | float] = field(default_factory=dict)

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
        return on_host(lambda partition: partition.cu_blocks.tolist(), self)


class Partitioner(Plugin, nn.Module):
    """Cuts the keys of a context into blocks. A new one is a subclass in a file of its own and a line in PARTITIONERS.

    causality: what a block may depend on, as a query sees it: the tokens up to the query (`token`), the query's whole
    frame (`frame`), `look_ahead_frames` frames more (`look_ahead`), or all of the batch (`video`).
    prefix_consistent: the blocks that a prefix of a video closes are blocks of the whole video.
    scope: `model` computes one partition per forward, `layer` one per group of layers (see `group`).
    needs_features: `forward` reads its features.
    """

    @dataclass
    class Config:
        """`block_size` is the length in tokens, the cap or the mean length to aim for: the partitioner says which."""

        block_size: int = 64

    scales = {"block_size": "frame"}
    causality: ClassVar[Causality]
    prefix_consistent: ClassVar[bool]
    look_ahead_frames: ClassVar[int] = 0
    needs_features: ClassVar[bool] = False
    scope: Literal["model", "layer"] = "model"

    def __init__(self, config: Any, hidden_size: int):
        super().__init__()
        self.config = config

    @classmethod
    def problems(cls, config: Any, design: Any) -> Iterator[Problem]:
        if config.block_size < 1:
            yield Problem("block_size", f"{config.block_size} is not positive")

    @classmethod
    def longest(cls, config: Any) -> int:
        """The most tokens a block can hold."""
        return int(config.block_size)

    @classmethod
    def group(cls, config: Any, layer: int) -> int:
        """Layers of one number share one partition, made by the first of them."""
        return 0

    def reset_parameters(self) -> None:
        """Give the weights, if there are any, their start values."""

    def forward(self, context: Context, features: Tensor | None = None, layer: int = 0) -> Partition:
        """The blocks of `context` as layer `layer` sees them.

        features [T, hidden], in context order: the embeddings that enter the decoder (scope `model`), or the inputs
        of the layer's attention (scope `layer`); None where `needs_features` is false.
        """
        raise NotImplementedError


def partition_from_block_id(block_id: Tensor, cu_seqlens: Tensor, causality: Causality, **more: Any) -> Partition:
    """The partition that `block_id` [T] describes; ids count from 0 without gaps, sample by sample.

    `more` are further fields of Partition; `block_start` and `block_end` replace the smallest and the greatest key.
    """
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
    fields: dict[str, Any] = {"block_start": start, "block_end": end} | more
    return Partition(
        block_id=block_id,
        offsets=offsets,
        perm=None if ordered else block_id.argsort(stable=True),
        cu_blocks=torch.cat([blocks_per_sample.new_zeros(1), blocks_per_sample.cumsum(0)]),
        max_length=int(lengths.max()) if count else 0,
        causality=causality,
        **fields,
    )


def partition_from_starts(starts: Tensor, cu_seqlens: Tensor, causality: Causality, **more: Any) -> Partition:
    """The partition whose blocks begin at the keys where `starts` [T] bool is true; the first key is one of them."""
    return partition_from_block_id(starts.cumsum(0) - 1, cu_seqlens, causality, **more)


def check_partition(partition: Partition, context: Context, cap: int) -> None:
    """Raise ValueError unless the blocks cover the context exactly once, within segments, none longer than `cap`."""
    keys = torch.arange(len(context.segment), device=context.segment.device)
    order = keys if partition.perm is None else partition.perm
    if not torch.equal(order.sort().values, keys) or int(partition.lengths.sum()) != len(keys):
        raise ValueError("the blocks do not cover every token exactly once")
    if partition.num_blocks and int(partition.lengths.min()) < 1:
        raise ValueError("a block is empty")
    if not torch.equal(partition.block_id[order], partition.block_id.sort().values):
        raise ValueError("perm does not put the tokens in the order of their blocks")
    if partition.max_length > cap:
        raise ValueError(f"a block holds {partition.max_length} tokens, more than the cap of {cap}")
    first = context.segment[order[partition.offsets[:-1]]]
    if not torch.equal(first[partition.block_id], context.segment):
        raise ValueError("a block crosses two samples, two videos, or text and video")
    greatest = torch.full_like(partition.block_end, -1).scatter_reduce(0, partition.block_id, keys, "amax")
    last_of_segment = torch.full_like(keys, -1).scatter_reduce(0, context.segment, keys, "amax")[first]
    if ((partition.block_end < greatest) | (partition.block_end > last_of_segment)).any():
        raise ValueError("a block is seen before it is complete, or after its segment is over")
