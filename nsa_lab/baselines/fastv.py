"""FastV (arXiv 2403.06764): after the first layers only the video tokens that the question's end attends to go on."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from nsa_lab.baselines.by_question import attention_of_question, strongest
from nsa_lab.baselines.reducer import Reducer, count_of, no_share, no_such_layer
from nsa_lab.errors import Problem


@dataclass
class Pruning:
    """layer: K, the first layer with fewer tokens. drop: R, the share of the video tokens that it does not get."""

    layer: int = 2
    drop: float = 0.5


class FastV(Reducer):
    """Layer K and those after it get the (1 - R) video tokens with most attention in layer K - 1.

    It is the attention row of the last token of the question, over all tokens that it reads, its heads' mean
    (github.com/pkunlp-icler/FastV, which has no licence; the paper speaks of all rows, its code takes the last).
    K = 2 and R = 50% are the paper's, 15/28 of the tokens over 28 layers. Positions are the original ones, where the
    released code counts anew; layer K - 1 runs once, where the cached version there runs it twice; what is kept is
    chosen in the prefill and stays for all that is decoded after it. All of a sample's videos are ranked together. In
    training and validation the question ends before the first token that is answered, as it does in generation: of
    several turns that is the first question, whose choice serves the later ones.
    """

    control = True
    divisible = False
    by_question = True

    @dataclass
    class Config:
        fastv: Pruning = field(default_factory=Pruning)

    @classmethod
    def problems(cls, config: Any, design: Any) -> Iterator[Problem]:
        yield from no_share("fastv.drop", config.fastv.drop, zero=True, one=False)
        if config.fastv.layer < 1:
            yield Problem("fastv.layer", f"{config.fastv.layer} has no layer before it to choose by; use 1 or more")

    @classmethod
    def beyond(cls, config: Any, layers: int) -> Iterator[Problem]:
        yield from no_such_layer("fastv.layer", config.fastv.layer, layers)

    @classmethod
    def left(cls, config: Any, layers: int, frames: int, size: int) -> list[int]:
        own, tokens = config.fastv, frames * size
        return [tokens] * own.layer + [count_of(1 - own.drop, tokens)] * (layers - own.layer)

    def asks(self, layers: int) -> Collection[int]:
        return (self.config.fastv.layer - 1,)

    def after_layer(self, layer: int, x: Tensor, plan: Any) -> tuple[Tensor, Any]:
        if layer != self.config.fastv.layer - 1:
            return x, plan
        heads = plan.heads[layer]
        reach = len(x) if heads.window is None else heads.window
        score = attention_of_question(heads, plan, lambda places, asking: places > asking - reach)
        index = strongest(plan.layout, score, 1 - self.config.fastv.drop)
        return x[index], plan.keep(index)
