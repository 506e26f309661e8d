"""What VideoNSA's published code computes, which is not what the paper says: for its weights, and for study.

Each deviation can be switched off alone; without any it is the method `nsa`. Plain PyTorch, cut over queries.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from nsa_lab.attention.branches import BRANCHES
from nsa_lab.attention.budget import Cost, mean_cost
from nsa_lab.attention.dims import HeadDims
from nsa_lab.attention.methods import released_ops as ops
from nsa_lab.attention.methods.base import Method, Plan
from nsa_lab.attention.methods.nsa import NSA
from nsa_lab.attention.trace import Trace
from nsa_lab.errors import NsaLabError, Problem
from nsa_lab.layout import TokenLayout
from nsa_lab.plugin import build, switched_on

MOST_BLOCKS = 32
"""Above it the published kernel merges its lists by chunks, which is no choice of the best blocks any more."""

SELECTION: dict[str, Any] = {
    "scorer": "compression",
    "rule": "top_n",
    "initial_blocks": 0,
    "local_blocks": 1,
    "query_tile": 1,
}
"""How the published code selects, and no other way."""


@dataclass
class Deviations:
    """Where the published code leaves the paper (its commit 377eeb9).

    reversed_mask: compression reads a query's own and all later blocks instead of the past ones.
    foreign_heads: query heads are doubled and padded to a power of two, so that both copies of a head read keys of
    groups that are not its own; its output is the mean of the two.
    zeroed_text: text stays among the sparse branches' keys, as zeros, and blocks are cut from a sample's first token.
    flat_scores: selection reads the log-sum-exp of another head and query, as if [H, T] were laid out as [T, H].
    unmasked: text rows get half of each branch on top of dense attention, video rows the running mean of all values.
    rounded_count: block_count is rounded up to a power of two.
    missed_tokens: a video token whose three position ids are equal counts as text; frames are `time_step` ids apart.
    temperature: of the gate's logits; null for the gate's own.
    """

    reversed_mask: bool = True
    foreign_heads: bool = True
    zeroed_text: bool = True
    flat_scores: bool = True
    unmasked: bool = True
    rounded_count: bool = True
    missed_tokens: bool = True
    time_step: int = 2
    temperature: float | None = 0.3


class Released(NSA):
    divisible = False

    @dataclass
    class Config(NSA.Config):
        """Blocks, counts, window and gate are the settings of `nsa`; `released` are the deviations.

        A prompt given in parts, the later ones after a cache, is another computation than in one. What follows a cache
        attends densely, without what `unmasked` adds to text rows. And `zeroed_text` counts text that comes later among
        the blocks of the rows before it, which `reversed_mask`, `flat_scores` and `unmasked` let them read.
        """

        released: Deviations = field(default_factory=Deviations)

    def __init__(self, config: Any, design: Any, dims: HeadDims, layer: int):
        Method.__init__(self, config, design, dims, layer)
        self.deviations, self.names = config.released, tuple(switched_on(config.branches))
        padded = ops.padded(dims.num_heads)
        if config.released.foreign_heads and padded % dims.num_kv_heads:
            raise NsaLabError(
                f"attention.method=released: {dims.num_heads} query heads do not divide over {dims.num_kv_heads} "
                f"key/value heads when padded to {padded}; set attention.released.foreign_heads=false"
            )
        temperature = config.released.temperature
        own = config.gate if temperature is None else replace(config.gate, temperature=temperature)
        # Under the name that `nsa` has for it: weights trained under one method run under the other.
        self.sparse = nn.ModuleDict({"gate": build(own, "kind", dims, len(self.names))})  # type: ignore[assignment]

    @classmethod
    def problems(cls, config: Any, design: Any) -> Iterator[Problem]:
        yield from super().problems(config, design)
        if design.backend != "auto":
            yield Problem(
                "backend", f"{design.backend} is not read by method=released, which is plain PyTorch; use auto"
            )
        only: dict[str, Any] = {"partition.kind": "uniform", "compressor.kind": "mean", "context": "video"}
        only["branches.compression.log_length_bias"] = False
        for path, value in only.items():
            if (other := attrgetter(path)(config)) != value:
                yield Problem(path, f"{other}: the published code has {value} alone; leave it out")
        selection = config.branches.selection
        for name, value in SELECTION.items() if selection.enabled else ():
            if getattr(selection, name) != value:
                yield Problem(f"branches.selection.{name}", f"the published code has {value} alone; leave it out")
        if selection.enabled and config.released.rounded_count and selection.block_count > MOST_BLOCKS:
            yield Problem(
                "branches.selection.block_count",
                f"{selection.block_count} is more than {MOST_BLOCKS}, beyond which the published kernel merges chunks; "
                "use fewer, or set attention.released.rounded_count=false",
            )
        if config.released.time_step < 1:
            yield Problem("released.time_step", f"{config.released.time_step} is not positive")
        if config.released.temperature is not None and config.released.temperature <= 0:
            yield Problem("released.temperature", f"{config.released.temperature} is not positive")

    @classmethod
    def attended(cls, config: Any) -> int:
        parts = switched_on(config.branches)
        known = sum(BRANCHES[name].attended(own, config) for name, own in parts.items() if name != "selection")
        return known + (cls._count(config) * config.partition.block_size if "selection" in parts else 0)

    @staticmethod
    def _count(config: Any) -> int:
        """Blocks that selection really reads."""
        count = config.branches.selection.block_count
        return int(1 << (count - 1).bit_length()) if config.released.rounded_count else int(count)

    def prefill(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, plan: Plan) -> Tensor:
        video = self._seen_as_video(plan.layout)
        gates = torch.where(video[:, None, None], self.sparse.gate(x), 0.5)
        self._record_gates(gates[plan.layout.video_index], plan.trace)
        wide, ends = torch.promote_types(q.dtype, torch.float32), plan.layout.cu_seqlens.tolist()
        parts = (*(part.to(wide) for part in (q, k, v, gates)), video, plan.layout.is_video)
        with torch.autocast(q.device.type, enabled=False):  # a running mean in bfloat16 would be off by a tenth
            found = [self._sample(*(part[begin:end] for part in parts)) for begin, end in pairwise(ends)]
        if plan.trace.wants("cost"):
            plan.trace.record(self.layer, "cost", [cost for _, cost in found if cost is not None])
        return torch.cat([out for out, _ in found]).to(q.dtype) if found else q

    def _record_gates(self, gates: Tensor, trace: Trace) -> None:
        """gates [Tq, H, R] of the video tokens."""
        trace.record(self.layer, "gates", gates.detach())
        if trace.wants("gate_means") and len(gates):
            means = gates.detach().float().mean((0, 1)).tolist()
            trace.record(self.layer, "gate_means", dict(zip(self.names, means, strict=True)))

    def _sample(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Tensor, video: Tensor, real: Tensor
    ) -> tuple[Tensor, tuple[int, Cost] | None]:
        """One sample's rows [n, H, D], and how many video queries read how much; `real` are the true video tokens."""
        text, deviations = (~video).nonzero().flatten(), self.deviations
        reach = torch.where(real[text] | (self.text_window is None), len(q), self.text_window or len(q))
        dense = ops.dense_rows(q, k, v, text, reach, self.scale)
        if not bool(video.any()):
            return dense, None
        out = q.new_zeros(q.shape).index_copy(0, text, dense)
        rows = torch.arange(len(q), device=q.device) if deviations.zeroed_text else video.nonzero().flatten()
        kept = video[rows, None, None].to(q.dtype)
        clean_q, clean_k, clean_v = (part[rows] * kept for part in (q, k, v))
        parts, counts = ops.branches(clean_q, clean_k, clean_v, self.names, self._shape())
        mixed = (parts * gates[rows, ..., None]).sum(2)
        if deviations.unmasked:
            if len(text):
                mean = ops.running_mean(v, q.shape[1])
                out = torch.where(video[:, None, None], out + mean, out)
        else:
            mixed = mixed * kept
        blocks = -(-len(rows) // self.config.partition.block_size)
        return out.index_add(0, rows, mixed), (int(video.sum()), ops.cost(counts, video[rows], blocks))

    def _shape(self) -> ops.Shape:
        config = self.config
        window = config.branches.window.size
        return ops.Shape(config.partition.block_size, self._count(config), window, self.scale, self.deviations)

    def cost(self, trace: Trace, lengths: Tensor) -> Cost:
        """The mean over the video queries, as counted in the forward (the trace must want `cost`)."""
        return mean_cost(trace.found[self.layer, "cost"])

    def _seen_as_video(self, layout: TokenLayout) -> Tensor:
        """[T] bool: the tokens that the published code takes for video."""
        if not self.deviations.missed_tokens or not len(layout.video_index):
            return layout.is_video
        video = layout.video.clamp(min=0)
        first = layout.frame.new_full((len(layout.grids),), len(layout.rows)).scatter_reduce(
            0, video[layout.is_video], layout.frame[layout.is_video], "amin"
        )
        columns = layout.grids[video, 2]
        row, column = layout.cell // columns, layout.cell % columns
        time = (layout.frame - first[video]) * self.deviations.time_step
        return layout.is_video & ~((row == column) & (row == time))
