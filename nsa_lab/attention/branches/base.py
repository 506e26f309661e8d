"""What a branch is."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nsa_lab.attention.budget import Cost
from nsa_lab.attention.dims import HeadDims
from nsa_lab.attention.inputs import BranchInputs
from nsa_lab.partition import Context
from nsa_lab.plugin import Plugin


class Branch(Plugin, nn.Module):
    """Attention of the video queries to some of the keys. A branch must not see a key after its query.

    needs_pooling: `forward` reads pooled keys and values.
    """

    @dataclass
    class Config:
        """A branch that is off costs nothing and has no gate."""

        enabled: bool = False

    needs_pooling: ClassVar[bool] = False

    def __init__(self, config: Any, dims: HeadDims):
        super().__init__()
        self.config = config

    @classmethod
    def query_tile(cls, config: Any) -> int:
        """How many neighbouring queries of a frame are computed together."""
        return 1

    @classmethod
    def attended(cls, config: Any, design: Any) -> int:
        """Tokens a late query reads token by token: this branch's share of the paper's K."""
        return 0

    @classmethod
    def notices(cls, config: Any, design: Any, clip: str, tokens: int) -> Iterator[str]:
        """What is allowed but worth saying of these settings for a clip of `tokens` video tokens."""
        return iter(())

    def forward(self, inputs: BranchInputs) -> Tensor:
        """[Tq, H, D]; zero where the query sees nothing."""
        raise NotImplementedError

    def cost(self, inputs: BranchInputs) -> Cost:
        """What the queries of a forward with these inputs read in this branch."""
        raise NotImplementedError

    def readers(self, inputs: BranchInputs) -> Tensor:
        """How many queries read each key: [T], or [N] of a branch that reads pooled values; [..., G] if groups differ.

        Unless a branch says otherwise, all queries of the sample at or after the key.
        """
        return queries_from(inputs.context, torch.arange(len(inputs.k), device=inputs.k.device))


def queries_from(context: Context, first: Tensor, size: int | None = None) -> Tensor:
    """[n] int64: the queries among the `size` keys (None: all) of its sample that begin with each of `first` [n]."""
    sample = torch.searchsorted(context.cu_seqlens, first, right=True) - 1
    end = context.query_cu_seqlens[sample + 1]
    if size is not None:
        end = torch.minimum(end, torch.searchsorted(context.query_index, first + size))
    return end - torch.searchsorted(context.query_index, first)


def mean(counts: Tensor) -> float:
    """The mean of counts per query (and group); 0 where there is no query."""
    return float(counts.float().mean()) if len(counts) else 0.0
