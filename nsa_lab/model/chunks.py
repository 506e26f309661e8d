"""A prefill in chunks of rows, for prompts whose activations would not fit: the same result in bounded memory.

A layer first makes the keys and values of all rows, which the cache wants anyway and few heads have. Then its queries
and all that follows them are computed chunk by chunk against these. So partitions, reducers and choices of blocks are
those of the whole prompt, and beside the cache nothing grows with it but the rows themselves.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from nsa_lab.attention.trace import Trace
from nsa_lab.errors import NsaLabError
from nsa_lab.layout import TokenLayout
from nsa_lab.model.plan import AttentionPlan
from nsa_lab.partition import Context, Partition
from nsa_lab.partition.segments import place_in_run


class Chunk:
    """The packed rows `rows` of a prefill, as a layer's method sees them (`attention.methods.base.Plan`).

    video, text: which of the plan's video and text rows are among them. known: keys and values [T, G, D] of all rows
    in the layer that runs.
    """

    known: tuple[Tensor, Tensor]

    def __init__(self, plan: AttentionPlan, rows: slice, video: slice):
        self.plan, self.rows, self.video = plan, rows, video
        self.text_only = slice(rows.start - video.start, rows.stop - video.stop)
        own = torch.arange(rows.start, rows.stop, device=plan.layout.rows.device)
        self.layout = replace(plan.layout, own=own)
        self.rope = plan.rope[0][rows], plan.rope[1][rows]
        self._contexts: dict[str, Context] = {}

    @property
    def trace(self) -> Trace:
        return self.plan.trace

    @cached_property
    def full(self) -> Context:
        return self.plan.full.of_queries(self.rows)

    @cached_property
    def text(self) -> Context:
        return self.plan.text.of_queries(self.text_only)

    @cached_property
    def time_order(self) -> Tensor:
        """[n] int64: where each row stands in (text rows, video rows)."""
        return torch.cat([self.layout.text_rows, self.layout.video_rows]).argsort()

    def sparse(self, kind: Literal["video", "all"]) -> Context:
        if kind not in self._contexts:
            self._contexts[kind] = self.plan.sparse(kind).of_queries(self.video)
        return self._contexts[kind]

    def partition(self, layer: int, x: Tensor) -> Partition:
        """The partition of the whole prefill, which was made before its chunks run."""
        return self.plan.made(layer)


class ChunkedPrefill:
    """Runs the layers of `decoder` over about `size` rows at a time; no chunk ends inside a tile of queries.

    Raises NsaLabError where the layers cannot be computed so.
    """

    def __init__(self, decoder: Any, size: int, plan: AttentionPlan):
        _check(decoder, plan)
        self.size, self.tile = size, decoder.query_tile
        self.plan: AttentionPlan | None = None
        self.chunks: list[Chunk] = []

    def layer(self, layer: Any, x: Tensor, cache: Any, plan: AttentionPlan) -> Tensor:
        """What decoder layer `layer` makes of all rows x [T, hidden]."""
        attention, number = layer.self_attn, layer.self_attn.layer_idx
        if plan is not self.plan:
            self.plan, self.chunks = plan, _cut(plan, self.size, self.tile)
        parts = [attention.keys(layer.input_layernorm(x[chunk.rows]), chunk.rope) for chunk in self.chunks]
        k, v = (torch.cat(part) for part in zip(*parts, strict=True))
        del parts
        if cache is not None:
            attention.fill(cache, k, v, plan)
        if number in plan.watched:
            asked = layer.input_layernorm(x[plan.asked])
            attention.show(attention.queries(asked, (plan.rope[0][plan.asked], plan.rope[1][plan.asked])), k, plan)
        if plan.makes(number):
            plan.partition(number, self.each(layer.input_layernorm, x))
        out = torch.empty_like(x)
        for chunk in self.chunks:
            chunk.known = k, v
            out[chunk.rows] = layer(x[chunk.rows], position_embeddings=chunk.rope, plan=chunk)
            del chunk.known
        return out

    def each(self, of_rows: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """[T, hidden]: what `of_rows` makes of each row of x [T, hidden]."""
        out = torch.empty_like(x)
        for begin in range(0, len(x), self.size):
            out[begin : begin + self.size] = of_rows(x[begin : begin + self.size])
        return out


def _cut(plan: AttentionPlan, size: int, tile: int) -> list[Chunk]:
    cuts = chunk_bounds(plan.layout, size, tile)
    video = torch.searchsorted(plan.layout.video_index, cuts)
    rows = zip(pairwise(cuts.tolist()), pairwise(video.tolist()), strict=True)
    return [Chunk(plan, slice(*own), slice(*of_video)) for own, of_video in rows]


def chunk_bounds(layout: TokenLayout, size: int, tile: int = 1) -> Tensor:
    """[n + 1] int64 ascending: where chunks of `size` rows begin and end, each moved back to where a query tile begins.

    `tile` neighbouring video rows of a frame, counted from its first, are not parted.
    """
    count = len(layout.rows)
    cuts = torch.arange(0, count, size, device=layout.rows.device)
    if tile > 1:
        place = place_in_run(layout.frame) % tile
        cuts = cuts - place.masked_fill(~layout.is_video, 0)[cuts]
    return torch.cat([cuts, cuts.new_tensor([count])]).unique()


def check_size(size: Any) -> None:
    """Raise NsaLabError where a chunk cannot be of so many tokens."""
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size < 2**62:
        raise NsaLabError(f"prefill_chunk={size!r} is no number of tokens; use 1 or more, or leave it out")


def _check(decoder: Any, plan: AttentionPlan) -> None:
    if torch.is_grad_enabled():
        raise NsaLabError("prefill_chunk keeps nothing for a backward pass; run the model under torch.no_grad()")
    if plan.shared:
        raise NsaLabError("prefill_chunk is for a prompt; a batch that several processes share is divided already")
    if plan.trace.wanted:
        raise NsaLabError(
            f"prefill_chunk cannot record {', '.join(sorted(plan.trace.wanted))} of whole layers; leave it out"
        )
    for layer in decoder.layers:
        method = layer.self_attn.method
        backend = method.ops(plan.layout.rows.device)
        for part, divisible in ((layer.self_attn.design.method, method.divisible), (method.backend, backend.divisible)):
            if not divisible:
                raise NsaLabError(f"{part} computes whole samples only; leave prefill_chunk out")
