"""What every layer of one forward shares: the token layout, the contexts and the partitions."""

from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from nsa_lab.attention.trace import Trace
from nsa_lab.layout import TokenLayout
from nsa_lab.model.partitions import LayerPartitions, Slot
from nsa_lab.partition import Context, Partition, full_context, sparse_context, text_context


class AttentionPlan:
    """The layout of a prefill; contexts are made when a layer first asks, once per forward, and so are partitions.

    `start` comes before the first layer.
    """

    def __init__(self, layout: TokenLayout, batch_shape: tuple[int, int], trace: Trace):
        self.layout = layout
        self.batch_shape = batch_shape
        self.trace = trace
        self.partitions: dict[int, Partition] = {}
        self._contexts: dict[str, Context] = {}

    def start(self, partitioners: LayerPartitions, embeddings: Tensor) -> None:
        """Make the partitions that rest on embeddings [B, L, hidden] alone; those of scope `layer` come later."""
        self.partitioners = partitioners
        with partitioners.timed(embeddings.device):
            for number, slot in enumerate(partitioners.slots):
                if partitioners.partitioner(number).scope == "model":
                    self._make(number, slot, self.pack(embeddings), slot.first_layer)

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

    def partition(self, layer: int, x: Tensor) -> Partition:
        """The partition of a layer whose attention inputs are x [T, hidden].

        The first layer of a group always makes it: activation checkpointing repeats what it saw.
        """
        number = self.partitioners.slot_of_layer[layer]
        slot = self.partitioners.slots[number]
        if self.partitioners.partitioner(number).scope == "layer" and slot.first_layer == layer:
            with self.partitioners.timed(x.device):
                self._make(number, slot, x, layer)
        return self.partitions[number]

    def _make(self, number: int, slot: Slot, x: Tensor, layer: int) -> None:
        context, partitioner = self.sparse(slot.context), self.partitioners.partitioner(number)
        features = x[context.token_index] if partitioner.needs_features else None
        partition = self.partitions[number] = partitioner(context, features, layer)
        self.trace.record(layer, "partition", partition)
        self.trace.add_loss(layer, slot.kind, partition.auxiliary_loss)

    def pack(self, x: Tensor) -> Tensor:
        """[B, L, ...] to [T, ...]."""
        return x.flatten(0, 1)[self.layout.rows]

    def unpack(self, x: Tensor) -> Tensor:
        """[T, ...] to [B, L, ...], zero on padding."""
        b, length = self.batch_shape
        if len(x) == b * length:
            return x.unflatten(0, self.batch_shape)
        return x.new_zeros(b * length, *x.shape[1:]).index_copy(0, self.layout.rows, x).unflatten(0, self.batch_shape)
