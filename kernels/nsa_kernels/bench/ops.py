"""Each op of the layer alone, and the whole layer, as jobs.

pool pools k and v. selection and window include the float32 dk and dv they need (zeroed for selection, which adds to
them). selection takes every tile of queries by the walk that its choices call for, selection-lists, selection-unions
(forward) and selection-gathered all by one; where keys are gathered the status says what that costs on paper.
selection-in-64s is selection whose backward reads longer blocks in parts. combine's backward makes the gates' gradient,
as in the layer, whose branches apply their gates themselves. The layer is `video_nsa` with all three branches, forward,
or forward and, by autograd, the gradients of q, k, v and gates.
"""

from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor

from nsa_kernels.bench.inputs import leaders, mean_union
from nsa_kernels.bench.jobs import BOTH, FORWARD, Design, Job, Prepared, Scene
from nsa_kernels.bench.names import FORWARD_ONLY, NAMED, OPS, PARTS, WALKS
from nsa_kernels.bench.roofline import Work, gathering
from nsa_kernels.blocks import Blocks, uniform_blocks
from nsa_kernels.combine.backward import combine_backward
from nsa_kernels.combine.forward import combine_forward
from nsa_kernels.compression.backward import compression_backward
from nsa_kernels.compression.forward import compression_forward
from nsa_kernels.compression.pooling import pool_backward, pool_forward
from nsa_kernels.selection.backward import selection_backward
from nsa_kernels.selection.forward import selection_forward
from nsa_kernels.topk.forward import topk_forward
from nsa_kernels.window.backward import window_backward
from nsa_kernels.window.forward import window_forward
from nsa_kernels.workspace import BACKWARD_KEYS, gathers

OF_INPUTS = ("layer", "topk", "selection", *NAMED)
"""Ops whose time depends on what the inputs are; the others are timed on the first kind only."""
OF_TILE = OF_INPUTS
"""Ops that a query tile changes."""
OF_DESIGN = ("layer", "pool", "compression", "topk", "selection", *NAMED)
"""Ops that the block design changes."""


def op_jobs(scene: Scene, designs: list[Design], only: set[str], first_inputs: bool) -> Iterator[Job]:
    """The first design for every op, the others for the ops they change."""
    for number, design in enumerate(designs):
        stage = Stage(scene, design)
        for op in (*OPS, *NAMED):
            relevant = (first_inputs or op in OF_INPUTS) and (design.query_tile == 1 or op in OF_TILE)
            if op in only and relevant and (number == 0 or op in OF_DESIGN):
                for direction in _directions(op, design):
                    yield Job(scene.case(op, direction, design), stage.preparer(op, direction == BOTH))


def _directions(op: str, design: Design) -> tuple[str, ...]:
    if op in PARTS:
        return (BOTH,) if design.block_size > PARTS[op] else ()
    return (FORWARD,) if op in FORWARD_ONLY else (FORWARD, BOTH)


class Stage:
    """A scene at one design, with what the ops hand on to one another made once."""

    def __init__(self, scene: Scene, design: Design) -> None:
        self.scene, self.design = scene, design
        self.heads, self.scale, self.counts = scene.heads, scene.scale, scene.counts

    def preparer(self, op: str, backward: bool) -> Callable[[], Prepared]:
        if op in WALKS:
            return lambda: self.selection(backward, **WALKS[op])
        if op in PARTS:
            return lambda: self.selection(backward, most=PARTS[op])
        return lambda: getattr(self, op)(backward)

    @cached_property
    def blocks(self) -> Blocks:
        bounds = torch.tensor([0, self.scene.tokens], device=self.scene.device)
        return uniform_blocks(bounds, self.design.block_size)

    @cached_property
    def leader(self) -> Tensor | None:
        tile = self.design.query_tile
        return leaders(self.scene.tokens, tile, self.scene.device) if tile > 1 else None

    @cached_property
    def pooled(self) -> tuple[Tensor, Tensor]:
        x = self.scene.inputs
        return pool_forward(x.k, self.blocks), pool_forward(x.v, self.blocks)

    @cached_property
    def lse(self) -> Tensor:
        return compression_forward(self.scene.inputs.q, self.pooled[0], None, self.blocks, self.scale)[1]

    @cached_property
    def chosen(self) -> Tensor:
        return self._choose()

    @cached_property
    def union(self) -> float:
        return mean_union(self.chosen)

    def _choose(self) -> Tensor:
        return topk_forward(
            self.scene.inputs.q, self.pooled[0], self.lse, self.blocks, self.scale, self.design.block_count,
            local=1, leader=self.leader, query_tile=self.design.query_tile,
        )  # fmt: skip

    def _rows(self) -> Tensor:
        """[Tq, H] float32 to stand for a gate, or for delta."""
        return self.scene.inputs.gates[:, :, 0].float().contiguous()

    def pool(self, backward: bool) -> Prepared:
        x, (dk, dv) = self.scene.inputs, self.pooled

        def run() -> None:
            pool_forward(x.k, self.blocks)
            pool_forward(x.v, self.blocks)
            if backward:
                pool_backward(dk, self.blocks)
                pool_backward(dv, self.blocks)

        return Prepared(run, self.counts.pool(self.blocks, backward))

    def compression(self, backward: bool) -> Prepared:
        x, (pk, pv), gate = self.scene.inputs, self.pooled, self._rows().T.contiguous()

        def run() -> None:
            _, lse = compression_forward(x.q, pk, pv, self.blocks, self.scale)
            if backward:
                compression_backward(x.q, pk, pv, x.do, lse, gate, gate, self.blocks, self.scale)

        return Prepared(run, self.counts.compression(self.blocks, backward))

    def topk(self, backward: bool) -> Prepared:
        work = self.counts.topk(self.blocks, self.design.block_count)
        return Prepared(self._choose, work, union16=self.union)

    def selection(
        self,
        backward: bool,
        gathered: bool | None = None,
        most_waste: float | None = None,
        most: int = BACKWARD_KEYS,
    ) -> Prepared:
        x, chosen, gate = self.scene.inputs, self.chosen, self._rows()

        def run() -> None:
            _, lse = selection_forward(x.q, x.k, x.v, chosen, self.blocks, self.scale, most_waste, gathered)
            if backward:
                dk, dv = (torch.zeros_like(x.k, dtype=torch.float32) for _ in range(2))
                selection_backward(
                    x.q, x.k, x.v, chosen, do=x.do, lse=lse, gate=gate, delta=gate, blocks=self.blocks,
                    scale=self.scale, dk=dk, dv=dv, most=most, gathered=gathered,
                )  # fmt: skip

        if gathered is None:
            gathered = self.gathers
        note = str(gathering(self.heads, self.blocks, chosen, x.k.dtype, backward)) if gathered else ""
        return Prepared(run, self._selection_work(backward, gathered), note, self.union)

    @property
    def gathers(self) -> bool:
        return gathers(self.design.block_count, self.blocks.longest)

    def _selection_work(self, backward: bool, gathered: bool) -> Work:
        count = self.counts.gathered if gathered else self.counts.selection
        return count(self.blocks, self.chosen, backward)

    def window(self, backward: bool) -> Prepared:
        x, gate, size = self.scene.inputs, self._rows().T.contiguous(), self.scene.window

        def run() -> None:
            _, lse = window_forward(x.q, x.k, x.v, self.blocks, size, self.scale)
            if backward:
                dk, dv = (torch.empty_like(x.k, dtype=torch.float32) for _ in range(2))
                window_backward(x.q, x.k, x.v, x.do, lse, gate, gate, self.blocks, size, self.scale, dk, dv)

        return Prepared(run, self.counts.window(size, backward))

    def combine(self, backward: bool) -> Prepared:
        x = self.scene.inputs
        outputs = [x.q, x.do, x.q.flip(0)]

        def run() -> None:
            combine_forward(outputs, x.gates)
            if backward:
                combine_backward(outputs, x.gates, x.do, False)

        return Prepared(run, self.counts.combine(backward))

    def layer(self, backward: bool) -> Prepared:
        from nsa_kernels import video_nsa

        x, design = self.scene.inputs, self.design
        leaves = [t.detach().requires_grad_(backward) for t in (x.q, x.k, x.v, x.gates)]
        q, k, v, gates = leaves

        def run() -> None:
            out = video_nsa(
                q, k, v, gates, self.blocks, block_count=design.block_count, window=self.scene.window, scale=self.scale,
                query_tile=design.query_tile, leader=self.leader,
            )  # fmt: skip
            if backward:
                torch.autograd.grad(out, leaves, x.do)

        return Prepared(run, self._layer_work(backward), union16=self.union)

    def _layer_work(self, backward: bool) -> Work:
        counts, blocks = self.counts, self.blocks
        return (
            counts.pool(blocks, backward)
            + counts.compression(blocks, backward)
            + counts.topk(blocks, self.design.block_count)
            + self._selection_work(backward, self.gathers)
            + counts.window(self.scene.window, backward)
            + counts.combine(backward)
        )
