"""A-shape: the first tokens and a local window (StreamingLLM's pattern, as MInference's library has it)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from nsa_lab.attention.methods.pairs import Choice
from nsa_lab.attention.methods.tiles import Grid, Tiles
from nsa_lab.attention.methods.training_free import TrainingFree
from nsa_lab.errors import Problem
from nsa_lab.plugin import at


@dataclass
class Reach:
    """initial: the sample's first so many tokens; local: a row's last so many, its own included."""

    initial: int = 128
    local: int = 3968


class AShape(TrainingFree):
    """Row i reads key j <= i where j < initial or i - j < local (github.com/microsoft/MInference, `a_shape`, MIT).

    Reproduced: the mask, token by token, at the published sizes. The library's kernel rounds it to its tiles of 64,
    which reads up to 63 keys more at each edge; that is not.
    """

    reads = "the first tokens of its sample and a local window"
    section: ClassVar[str] = "a_shape"
    """Where its settings stand."""

    @dataclass
    class Config:
        a_shape: Reach = field(default_factory=Reach)

    @classmethod
    def problems(cls, config: Any, design: Any) -> Iterator[Problem]:
        yield from super().problems(config, design)
        yield from at(cls.section, _problems(cls.reach(config)))

    @classmethod
    def attended(cls, config: Any) -> int:
        return cls.reach(config).initial + cls.reach(config).local

    @classmethod
    def notices(cls, config: Any, clip: str, tokens: int) -> Iterator[str]:
        local = cls.reach(config).local
        if tokens <= local:
            held = f"all {tokens} tokens of a {clip} clip"
            yield f"attention.{cls.section}.local={local} holds {held}: it is read densely"

    @classmethod
    def reach(cls, config: Any) -> Reach:
        """Its settings."""
        own: Reach = getattr(config, cls.section)
        return own

    def choose(self, q: Tensor, k: Tensor) -> Choice:
        reach = self.reach(self.config)
        initial, local = reach.initial, reach.local

        def tiles(grid: Grid) -> Tiles:
            nearest, farthest = grid.first[:, None] - grid.last, grid.last[:, None] - grid.first
            some = (grid.first < initial) | (nearest < local)
            return Tiles(some[None], ((grid.last < initial) | (farthest < local))[None])

        return Choice(lambda heads, rows, keys: (keys < initial) | (rows - keys < local), tiles)


def _problems(reach: Reach) -> Iterator[Problem]:
    if reach.initial < 0:
        yield Problem("initial", f"{reach.initial} is negative; use 0 or more")
    if reach.local < 1:
        yield Problem("local", f"{reach.local} leaves a row without itself; use 1 or more")
