"""What every layer of one forward shares: the token layout, the contexts and the partitions."""

from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from nsa_lab.config import AttentionConfig
from nsa_lab.layout import TokenLayout
from nsa_lab.partition import PARTITIONERS, Context, Partition, full_context, sparse_context, text_context


class AttentionPlan:
    """The layout of a prefill; contexts and partitions are made when a layer first asks, once per forward."""

    def __init__(self, layout: TokenLayout, batch_shape: tuple[int, int]):
        self.layout = layout
        self.batch_shape = batch_shape
        self._contexts: dict[str, Context] = {}
        self._partitions: dict[tuple[str, str, int], Partition] = {}

    @cached_property
    def text(self) -> Context:
        return text_context(self.layout)

    @cached_property
    def full(self) -> Context:
        return full_context(self.layout)

    @cached_property
    def time_order(self) -> Tensor:
        """[T] int64: where each packed token stands in (text tokens, video tokens)."""
        return torch.cat([self.layout.text_index, self.layout.video_index]).argsort()

    def sparse(self, kind: Literal["video", "all"]) -> Context:
        if kind not in self._contexts:
            self._contexts[kind] = sparse_context(self.layout, kind)
        return self._contexts[kind]

    def partition(self, design: AttentionConfig) -> Partition:
        key = (design.context, design.partition.kind, design.partition.block_size)
        if key not in self._partitions:
            partitioner = PARTITIONERS[design.partition.kind]
            self._partitions[key] = partitioner(self.sparse(design.context), design.partition.block_size)
        return self._partitions[key]

    def pack(self, x: Tensor) -> Tensor:
        """[B, L, ...] to [T, ...]."""
        return x.flatten(0, 1)[self.layout.rows]

    def unpack(self, x: Tensor) -> Tensor:
        """[T, ...] to [B, L, ...], zero on padding."""
        b, length = self.batch_shape
        if len(x) == b * length:
            return x.unflatten(0, self.batch_shape)
        return x.new_zeros(b * length, *x.shape[1:]).index_copy(0, self.layout.rows, x).unflatten(0, self.batch_shape)
