"""Token reducers: which video tokens go on through the decoder."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from nsa_lab.errors import Problem
from nsa_lab.plugin import Plugin


@dataclass(frozen=True)
class AskedHeads:
    """What a layer's attention makes of the last token of each sample's question, and of all tokens to be read.

    q [S, H, D] and k [T, G, D], without gradient. window: how many last tokens a text row reads; None: all before it.
    """

    q: Tensor
    k: Tensor
    window: int | None = None


@dataclass(frozen=True)
class Sight:
    """What a block of the vision tower says of the N video tokens, in their order, without gradient.

    received [N]: the attention that a token's patches get from the patches of their own frame, the mean over these, the
    heads and the token's patches. keys [N, D]: its key before rotary embedding, the mean over heads and patches.
    """

    received: Tensor
    keys: Tensor


class Reducer(Plugin, nn.Module):
    """May drop or merge video tokens after the vision tower and after each layer; this one keeps all.

    A hook gets a plan (nsa_lab.model.plan.AttentionPlan) and returns the rows that go on with the plan that knows them:
    `plan.keep(index)`, beside x[index] or a merged x.
    Text tokens stay. Positions are those of the unreduced grid.
    by_question: what stays depends on the end of a sample's question, so that earlier rows depend on it too.
    """

    by_question: ClassVar[bool] = False

    def __init__(self, config: Any, hidden_size: int):
        super().__init__()
        self.config = config

    @classmethod
    def beyond(cls, config: Any, layers: int) -> Iterator[Problem]:
        """Settings that name a layer which a model of `layers` decoder layers does not have."""
        return iter(())

    @classmethod
    def left(cls, config: Any, layers: int, frames: int, size: int) -> list[int] | None:
        """How many tokens each of so many layers has of a sample's video, `frames` temporal patches of `size` tokens.

        None: not known.
        """
        return None

    def looks_at(self, blocks: Sequence[int]) -> Collection[int]:
        """Of which vision blocks it wants a Sight (`plan.tower`), of those in which a frame's patches all attend."""
        return ()

    def asks(self, layers: int) -> Collection[int]:
        """Of which of `layers` decoder layers it wants the AskedHeads after M-RoPE (`plan.heads`)."""
        return ()

    def after_vision(self, x: Tensor, plan: Any) -> tuple[Tensor, Any]:
        """x [T, hidden]: the embeddings that enter the decoder, packed."""
        return x, plan

    def after_layer(self, layer: int, x: Tensor, plan: Any) -> tuple[Tensor, Any]:
        """x [T, hidden]: the rows that decoder layer `layer` gave."""
        return x, plan


def count_of(share: float, tokens: int) -> int:
    """How many of so many tokens a share is: rounded, and at least one of any."""
    return min(tokens, max(1, round(share * tokens)))


def no_share(name: str, value: float, *, zero: bool, one: bool) -> Iterator[Problem]:
    """A problem where the setting `name` is not between 0 and 1; `zero` and `one` say whether it may be these."""
    if value < 0 or value > 1 or (value == 0 and not zero) or (value == 1 and not one):
        yield Problem(name, f"{value} is no share {'from' if zero else 'above'} 0 {'to' if one else 'to below'} 1")


def no_such_layer(name: str, value: int, layers: int) -> Iterator[Problem]:
    """A problem where a model of `layers` has no layer `value`, as the setting `name` says, with another before it."""
    if layers < 2:
        yield Problem(name, "the model has one layer, before which nothing can be dropped; use more layers")
    elif not 0 < value < layers:
        yield Problem(name, f"{value}: the model has layers 0 to {layers - 1}; use 1 to {layers - 1}")
