"""One thing to time: what it is, and how to get it ready. Nothing is allocated before `prepare` is called."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from nsa_kernels.bench.inputs import INPUTS, Heads, Inputs
from nsa_kernels.bench.records import Case
from nsa_kernels.bench.roofline import Counts, Work

FORWARD, BOTH = "forward", "forward+backward"


@dataclass(frozen=True)
class Design:
    block_size: int
    block_count: int
    query_tile: int = 1


@dataclass(frozen=True)
class Prepared:
    """The call to time, the work it must do, a remark for the status column, and the choice's union."""

    run: Callable[[], object]
    work: Work
    note: str = ""
    union16: float | None = None


@dataclass(frozen=True)
class Job:
    case: Case
    prepare: Callable[[], Prepared]


class Scene:
    """Inputs of one kind and length, made when first asked for."""

    def __init__(self, kind: str, tokens: int, heads: Heads, window: int, dtype: torch.dtype, device: torch.device):
        self.kind, self.tokens, self.heads, self.window = kind, tokens, heads, window
        self.dtype, self.device = dtype, device
        self.scale = heads.dim**-0.5
        self.counts = Counts(heads, tokens, dtype)
        self._inputs: Inputs | None = None

    @property
    def inputs(self) -> Inputs:
        if self._inputs is None:
            self._inputs = INPUTS[self.kind](self.tokens, self.heads, self.dtype, self.device)
        return self._inputs

    def case(self, op: str, direction: str, design: Design | None = None) -> Case:
        size, count, tile = (design.block_size, design.block_count, design.query_tile) if design else (0, 0, 0)
        return Case(op, self.kind, self.tokens, size, count, tile, direction)
