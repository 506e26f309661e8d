"""Tri-Shape: A-shape, and the last rows densely."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nsa_lab.attention.methods.a_shape import AShape, Reach
from nsa_lab.attention.methods.pairs import Choice
from nsa_lab.attention.methods.tiles import Grid, Tiles
from nsa_lab.errors import Problem


@dataclass
class TriReach(Reach):
    """last: a sample's so many last rows, which read everything before them."""

    last: int = 100


class TriShape(AShape):
    """A-shape up to the last rows, which are dense (github.com/microsoft/MInference, `tri_shape`, MIT; SCBench).

    Reproduced: the mask, token by token, at the sizes that VideoNSA's release sets. Of a question of more than `last`
    tokens the first ones are not dense, as published; and the last rows read values that sparse rows made. The
    library's kernel rounds the mask to its tiles, which is not reproduced.
    """

    reads = "the first tokens of its sample and a local window, and the last rows everything"
    section = "tri_shape"

    @dataclass
    class Config:
        tri_shape: TriReach = field(default_factory=TriReach)

    @classmethod
    def problems(cls, config: Any, design: Any) -> Iterator[Problem]:
        yield from super().problems(config, design)
        if config.tri_shape.last < 0:
            yield Problem("tri_shape.last", f"{config.tri_shape.last} is negative; use 0 or more")

    def choose(self, q: Tensor, k: Tensor) -> Choice:
        sparse, first_dense = super().choose(q, k), torch.tensor(len(q) - self.config.tri_shape.last, device=q.device)
        seen = sparse.seen

        def tiles(grid: Grid) -> Tiles:
            of = sparse.tiles(grid)
            some, whole = (edge[:, None] >= first_dense for edge in (grid.last, grid.first))
            return Tiles(of.some | some, of.whole | whole)

        return Choice(lambda heads, rows, keys: seen(heads, rows, keys) | (rows >= first_dense), tiles)
