"""What the layers of one prefill share: which tokens there are, their positions, the contexts and the partitions."""

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from nsa_lab.attention.trace import Trace
from nsa_lab.baselines import AskedHeads, Sight
from nsa_lab.errors import NsaLabError
from nsa_lab.layout import TokenLayout, moved, on_host
from nsa_lab.model.context_parallel import Shared
from nsa_lab.model.partitions import LayerPartitions
from nsa_lab.partition import Context, Partition, full_context, sparse_context, text_context

Rope = tuple[Tensor, Tensor]
"""Cosines and sines of M-RoPE, [T, D] each."""


class AttentionPlan:
    """The T packed tokens of a prefill of rows [B, L], as the layers from `first_layer` on see them.

    A layer may be computed again later (activation checkpointing), so its plan stays as it is: `keep` makes another.
    next_layer: the layer that comes next. reduced: whether tokens of the input are missing. shared: how several
    processes divide the tokens; the rows of the input are then the layout's own ones.
    answering: [B, up to L] bool, the tokens that an answer is to follow; a sample's first one ends its question.
    For a reducer: `layers`, the decoder's; `tower`, what it looks at there, by block; `watched`, the layers of which it
    wants the `heads`, and these.
    """

    def __init__(
        self,
        layout: TokenLayout,
        batch_shape: tuple[int, int],
        trace: Trace,
        first_layer: int = 0,
        shared: Shared | None = None,
        answering: Tensor | None = None,
    ):
        self.layout, self.batch_shape, self.trace, self.shared = layout, batch_shape, trace, shared
        self.first_layer = self.next_layer = first_layer
        self.reduced = False
        self.partitions: dict[int, Partition] = {}
        self._contexts: dict[str, Context] = {}
        self.answering = answering
        self.layers: Sequence[nn.Module] = ()
        self.tower: dict[int, Sight] = {}
        self.watched: Collection[int] = ()
        self.heads: dict[int, AskedHeads] = {}

    def begin(self, partitioners: LayerPartitions, embeddings: Tensor, rope: Rope) -> None:
        """Before the first layer: make the partitions that rest on the embeddings [T, hidden] alone.

        Those of scope `layer` are made by the first layer that asks.
        """
        self.partitioners, self.embeddings, self.rope = partitioners, embeddings, rope
        with partitioners.timed(embeddings.device):
            for number, slot in enumerate(partitioners.slots):
                if partitioners.partitioner(number).scope == "model" and slot.layers[-1] >= self.first_layer:
                    self._make(number, embeddings, slot.first_layer(self.first_layer))

    def keep(self, index: Tensor) -> "AttentionPlan":
        """The plan of the packed tokens `index` [n] int64, ascending, for the layers that come.

        Raises ValueError where `index` is out of order or range, or drops a text token, and NsaLabError where several
        processes share the tokens.
        """
        if self.shared:
            raise NsaLabError("a reducer cannot drop tokens of a shared sample; set training.context_parallel=1")
        self._check(index)
        plan = AttentionPlan(self.layout.keep(index), self.batch_shape, self.trace, self.next_layer)
        plan.reduced = True
        plan.layers, plan.watched = self.layers, self.watched
        plan.asked = torch.searchsorted(index, self.asked)
        plan.begin(self.partitioners, self.embeddings[index], (self.rope[0][index], self.rope[1][index]))
        return plan

    @cached_property
    def asked(self) -> Tensor:
        """[S] int64: the last token of each sample's question; where nothing is said of an answer, its last token.

        Raises NsaLabError where the input ends before the question.
        """
        ends = self.layout.cu_seqlens[1:]
        if self.answering is None:
            return ends - 1
        missing = self.batch_shape[1] - self.answering.shape[1]
        if missing < 0:
            raise NsaLabError(
                f"the reducer chooses by a question's end, {-missing} tokens after the end of this input; give the"
                " whole prompt to one forward"
            )
        marked = F.pad(self.answering, (0, missing)).flatten()[self.layout.rows].nonzero().flatten()
        first = ends - 1
        return first.scatter_reduce(0, self.layout.sample[marked], marked, "amin")

    @torch.no_grad()
    def next_heads(self, x: Tensor) -> AskedHeads:
        """What the layer that comes next projects of x [T, hidden], which it will get, before M-RoPE."""
        layer: Any = self.layers[self.next_layer]
        if isinstance(layer, FSDPModule):
            layer.unshard()  # and stays so until it has run
        attention, x = layer.self_attn, layer.input_layernorm(x)
        q, k = attention.q_proj(x[self.asked]), attention.k_proj(x)
        return AskedHeads(*(projected.unflatten(-1, (-1, attention.head_dim)) for projected in (q, k)))

    @property
    def video_lengths(self) -> Tensor:
        """[V] int64: the tokens that are left of each video."""
        return torch.bincount(self.layout.video[self.layout.video_index], minlength=len(self.layout.grids))

    @cached_property
    def text(self) -> Context:
        return text_context(self.layout)

    @cached_property
    def full(self) -> Context:
        return full_context(self.layout)

    @cached_property
    def time_order(self) -> Tensor:
        """[n] int64: where each own row stands in (text rows, video rows)."""
        return torch.cat([self.layout.text_rows, self.layout.video_rows]).argsort()

    def all_rows(self, x: Tensor) -> Tensor:
        """[T, ...]: x [n, ...] of the own rows, and those of the other processes that share the sample."""
        return self.shared.all_rows(x) if self.shared else x

    def sparse(self, kind: Literal["video", "all"]) -> Context:
        """The keys of sparse attention; see `sparse_context`."""
        if kind not in self._contexts:
            self._contexts[kind] = sparse_context(self.layout, kind)
        return self._contexts[kind]

    def partition(self, layer: int, x: Tensor) -> Partition:
        """The partition of a layer whose attention inputs are x [n, hidden].

        The first layer of a group always makes it: activation checkpointing repeats what it saw.
        """
        if self.makes(layer):
            with self.partitioners.timed(x.device):
                self._make(self.partitioners.slot_of_layer[layer], x, layer)
        return self.made(layer)

    def makes(self, layer: int) -> bool:
        """Whether it is this layer that makes the partition that it reads."""
        number = self.partitioners.slot_of_layer.get(layer)
        if number is None:
            return False
        first = self.partitioners.slots[number].first_layer(self.first_layer)
        return self.partitioners.partitioner(number).scope == "layer" and layer == first

    def made(self, layer: int) -> Partition:
        """The partition that a layer reads, which an earlier layer or `begin` has made."""
        return self.partitions[self.partitioners.slot_of_layer[layer]]

    def _make(self, number: int, x: Tensor, layer: int) -> None:
        slot, partitioner = self.partitioners.slots[number], self.partitioners.partitioner(number)
        context = self.sparse(slot.context)
        if partitioner.needs_features and self.shared:
            features = self.all_rows(x.detach())[context.token_index]
            partition = moved(self.shared.group.first(lambda: partitioner(context, features, layer)), x.device)
        elif partitioner.needs_features:
            partition = partitioner(context, x[context.token_index], layer)
        else:
            partition = on_host(lambda own: partitioner(own, None, layer), context)
        self.partitions[number] = partition
        self.trace.record(layer, "partition", partition)
        self.trace.add_loss(layer, slot.kind, partition.auxiliary_loss)

    def _check(self, index: Tensor) -> None:
        count = len(self.layout.rows)
        if index.ndim != 1 or (len(index) and (int(index[0]) < 0 or int(index[-1]) >= count)):
            raise ValueError(f"keep takes packed places [n] from 0 to {count - 1}, not {tuple(index.shape)} {index}")
        if bool((index.diff() <= 0).any()):
            raise ValueError("keep takes packed places in ascending order, each once")
        if int((~self.layout.is_video[index]).sum()) != len(self.layout.text_index):
            raise ValueError("keep drops a text token; a reducer may drop video tokens only")

    def pack(self, x: Tensor) -> Tensor:
        """[B, L, ...] to [T, ...]; of a shared sample the input are the own rows and nothing else."""
        return x.flatten(0, 1) if self.shared else x.flatten(0, 1)[self.layout.rows]

    def unpack(self, x: Tensor) -> Tensor:
        """[T, ...] to [B, L, ...], zero on padding and on dropped tokens."""
        b, length = self.batch_shape
        if len(x) == b * length:
            return x.unflatten(0, self.batch_shape)
        return x.new_zeros(b * length, *x.shape[1:]).index_copy(0, self.layout.rows, x).unflatten(0, self.batch_shape)

    @cached_property
    def right_aligned(self) -> tuple[Tensor, Tensor]:
        """Each row's tokens pushed together at its end: places [T] int64 in [B * M], and which of [B, M] hold one."""
        row = self.layout.rows // self.batch_shape[1]
        counts = torch.bincount(row, minlength=self.batch_shape[0])
        most = int(counts.max())
        ends = (torch.arange(len(counts), device=row.device) + 1) * most
        before = counts.cumsum(0) - counts
        places = ends[row] - counts[row] + torch.arange(len(row), device=row.device) - before[row]
        real = torch.arange(most, device=row.device) >= most - counts[:, None]
        return places, real

    def align(self, x: Tensor) -> Tensor:
        """[T, ...] to [B, M, ...], each row's tokens at its end, zeros before them."""
        places, real = self.right_aligned
        return x.new_zeros(real.numel(), *x.shape[1:]).index_copy(0, places, x).unflatten(0, real.shape)
