"""From scores to block lists: scorer -> rule -> blocks. Scores carry no gradient."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nsa_lab.attention.dims import HeadDims
from nsa_lab.partition import Context, Partition
from nsa_lab.plugin import Plugin


class Scorer(Plugin, nn.Module):
    """What a block is worth to a query. It may own parameters; they learn by `loss` alone, as scores carry no gradient.

    needs_x: `forward` reads x.
    """

    needs_x: ClassVar[bool] = False

    def __init__(self, config: Any, dims: HeadDims):
        super().__init__()
        self.config = config

    def forward(
        self,
        x: Tensor | None,
        q: Tensor,
        pooled_k: Tensor,
        visible: Tensor,
        block_bias: Tensor | None,
        scale: float,
    ) -> Tensor:
        """Scores [U, C, G, M], higher is better, of M blocks for U samples with C query rows each.

        x [U, C, hidden] the rows' attention inputs (None unless `needs_x`), q [U, C, G, H/G, D], pooled_k [U, M, G, D],
        visible [U, C, M] bool the blocks that each row sees, block_bias [U, M] on the logits.
        """
        raise NotImplementedError

    def plain(self, x: Tensor | None, q: Tensor, pooled_k: Tensor, block_bias: Tensor | None, scale: float) -> Tensor:
        """Scores [G, M] of one query that sees all M blocks: x [hidden], q [G, H/G, D], pooled_k [M, G, D]."""
        seen = torch.ones(1, 1, len(pooled_k), dtype=torch.bool, device=q.device)
        bias = None if block_bias is None else block_bias[None]
        return self(None if x is None else x[None, None], q[None, None], pooled_k[None], seen, bias, scale)[0, 0]

    def loss(self, inputs: Any) -> Tensor | None:
        """A scalar, already weighted, that is added to the training loss; `inputs` are the layer's BranchInputs."""
        return None


class Rule(Plugin):
    """How scores become blocks. `plain` defines it, one query at a time; `choose` does it for many."""

    @dataclass
    class Config:
        """At most `block_count` blocks per query and group, forced ones included."""

        block_count: int = 32

    scales = {"block_count": "blocks"}

    def __init__(self, config: Any):
        self.config = config

    @classmethod
    def attended(cls, config: Any, design: Any) -> int:
        """Tokens a late query reads: the selection's share of the paper's K."""
        return int(config.block_count * design.partition.block_size)

    def plain(self, forced: set[int], score: dict[int, float], lengths: dict[int, int]) -> list[int]:
        """The blocks of one query and group: `score` of what it sees, `lengths` in tokens of all blocks."""
        raise NotImplementedError

    def choose(self, scores: Tensor, visible: Tensor, forced: Tensor, lengths: Tensor) -> Tensor:
        """[U, C, G, n] int64 ascending block numbers, n at most block_count, -1 past the last one.

        scores [U, C, G, M]; visible and forced [U, C, M] bool; lengths [U, M] int64.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class BlockRule:
    """What an op is told about choosing blocks: the rule, forced blocks, and how many queries share one choice.

    query_tile: how many neighbouring queries of a frame share one choice, made of their scores' sum. Above 1 a query's
    blocks depend on later queries of its tile, so that the layer is causal frame by frame and not token by token.
    """

    rule: Rule
    initial_blocks: int = 0
    local_blocks: int = 1
    query_tile: int = 1

    @property
    def block_count(self) -> int:
        return int(self.rule.config.block_count)


def in_order(worth: dict[int, float], forced: set[int], count: int) -> list[int]:
    """The first `count` blocks: forced ones, then by worth; equal worth goes to the earlier block."""
    return [*sorted(forced), *sorted(set(worth) - forced, key=lambda j: (-worth[j], j))][:count]


def rank(scores: Tensor, visible: Tensor, forced: Tensor) -> Any:
    """Blocks in descending order (`indices`), forced ones first (`values` inf), what no row sees last (-inf)."""
    ranked = scores.masked_fill(~visible[:, :, None], -torch.inf).masked_fill(forced[:, :, None], torch.inf)
    return ranked.sort(dim=-1, descending=True, stable=True)


def first_slots(number: Tensor, taken: Tensor, count: int) -> Tensor:
    """The first `count` of the ranked block numbers where `taken`, ascending, -1 past the last one."""
    last = number.shape[-1]
    number = number[..., :count].masked_fill(~taken[..., :count], last).sort(dim=-1).values
    return number.masked_fill(number == last, -1)


def fitting(blocks: Tensor, context: Context, partition: Partition) -> Tensor:
    """blocks [Tq, G, n] with -1 for all that is no block of the query's sample, and for all but the first of the same.

    What does not fit is then read by nobody, and no host waits to hear of it.
    """
    sample = torch.searchsorted(context.cu_seqlens, context.query_index, right=True) - 1
    first, past = (partition.cu_blocks[sample + i, None, None] for i in (0, 1))
    ascending, slot = blocks.sort(dim=-1, stable=True)
    repeated = F.pad(ascending[..., 1:] == ascending[..., :-1], (1, 0))
    repeated = torch.empty_like(repeated).scatter_(-1, slot, repeated)
    return blocks.masked_fill((blocks < first) | (blocks >= past) | repeated, -1)
