"""A-shape: the first tokens and a local window (StreamingLLM's pattern, as MInference's library has it)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from nsa_lab.attention.methods.training_free import Choice, TrainingFree
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

    @dataclass
    class Config:
        a_shape: Reach = field(default_factory=Reach)

    @classmethod
    def problems(cls, config: Any, design: Any) -> Iterator[Problem]:
        yield from super().problems(config, design)
        yield from at("a_shape", reach_problems(config.a_shape))

    @classmethod
    def attended(cls, config: Any) -> int:
        return int(config.a_shape.initial + config.a_shape.local)

    @classmethod
    def notices(cls, config: Any, clip: str, tokens: int) -> Iterator[str]:
        yield from reach_notices("a_shape", config.a_shape, clip, tokens)

    def choose(self, q: Tensor, k: Tensor) -> Choice:
        return Choice(lambda rows, keys: first_and_last(self.config.a_shape, rows, keys)[None])


def first_and_last(reach: Reach, rows: Tensor, keys: Tensor) -> Tensor:
    """[n, m] bool: which of `keys` [m] rows [n] read."""
    return (keys < reach.initial) | (rows[:, None] - keys < reach.local)


def reach_problems(reach: Reach) -> Iterator[Problem]:
    """What is wrong with the sizes, paths counted from their section."""
    if reach.initial < 0:
        yield Problem("initial", f"{reach.initial} is negative; use 0 or more")
    if reach.local < 1:
        yield Problem("local", f"{reach.local} leaves a row without itself; use 1 or more")


def reach_notices(name: str, reach: Reach, clip: str, tokens: int) -> Iterator[str]:
    """Where the window is so long that a clip of `tokens` video tokens is read whole."""
    if tokens <= reach.local:
        yield f"attention.{name}.local={reach.local} holds all {tokens} tokens of a {clip} clip: it is read densely"
