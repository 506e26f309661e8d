"""What an implementation of the attention ops offers.

Shapes: q [Tq, H, D]; k, v [T, G, D]; pooled_k, pooled_v [N, G, D]; query head h reads key/value head h // (H / G).
`reference.Reference` defines every op.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from nsa_lab.attention.choice import BlockRule, Scorer
from nsa_lab.partition import Context, Partition


class Backend(ABC):
    """One way to compute the ops. It keeps no state; one instance serves all layers.

    fused: `video_nsa` computes the three standard branches in one call. divisible: queries may be some of the video
    tokens alone (training.context_parallel, prefill_chunk).
    """

    fused: ClassVar[bool] = False
    divisible: ClassVar[bool] = True

    @abstractmethod
    def why_not(self, device: torch.device, named: bool) -> str | None:
        """None where this backend runs on `device`, otherwise the reason.

        `named` tells whether it was asked for by its name: what is only for tests or comparison says no otherwise.
        """

    def why_not_design(self, design: Any, head_dim: int) -> str | None:
        """None where this backend computes this design, otherwise the rule of its own that is broken."""
        return None

    @abstractmethod
    def compression(
        self,
        q: Tensor,
        pooled_k: Tensor,
        pooled_v: Tensor,
        context: Context,
        partition: Partition,
        *,
        scale: float,
        block_bias: Tensor | None = None,
    ) -> Tensor:
        """Softmax over the pooled keys of blocks that ended at or before the query. [Tq, H, D]; no such block: zero.

        block_bias [N] is added to the logits of each block (log n for unequal blocks).
        """

    @abstractmethod
    def select_blocks(
        self,
        q: Tensor,
        pooled_k: Tensor,
        context: Context,
        partition: Partition,
        *,
        scale: float,
        scorer: Scorer,
        rule: BlockRule,
        x: Tensor | None = None,
        block_bias: Tensor | None = None,
    ) -> Tensor:
        """The blocks each (query, group) attends, [Tq, G, block_count] int64 ascending, -1 past the last one.

        x [Tq, hidden] is for scorers that read it. Forced are the sample's first `initial_blocks` that have begun and
        the `local_blocks` that end with the query's own. A tile of `query_tile` queries shares one choice: scores are
        summed over them (0 where the block has not ended at a query), candidates are the blocks that have ended at the
        last query, and forced are the initial blocks that have begun there and the local blocks from the first query's
        to the last one's. What the rule makes of scores: see `select.RULES`.
        """

    @abstractmethod
    def selection(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        blocks: Tensor,
        context: Context,
        partition: Partition,
        *,
        scale: float,
    ) -> Tensor:
        """Softmax over the tokens of `blocks` [Tq, G, n] that stand at or before the query. [Tq, H, D].

        A number that is of no block of the query's sample is ignored, and a block that is named twice is read once.
        """

    @abstractmethod
    def window(self, q: Tensor, k: Tensor, v: Tensor, context: Context, *, size: int, scale: float) -> Tensor:
        """Softmax over the last `size` keys of the sample, the query's own included. [Tq, H, D]."""

    @abstractmethod
    def dense(self, q: Tensor, k: Tensor, v: Tensor, context: Context, *, scale: float) -> Tensor:
        """Softmax over all keys of the sample at or before the query. [Tq, H, D]."""

    def chooses(self, scorer: Scorer, rule: BlockRule) -> bool:
        """Whether `video_nsa` chooses blocks by this scorer and rule itself; otherwise it must be given them."""
        return False

    def video_nsa(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gates: Tensor,
        context: Context,
        partition: Partition,
        *,
        branches: Sequence[str],
        rule: BlockRule | None,
        window_size: int,
        pooled: tuple[Tensor, Tensor] | None,
        block_bias: Tensor | None,
        scale: float,
        chosen: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The gated sum of `branches` [Tq, H, D], gates [Tq, H, R] in their order; and the blocks [Tq, G, n] int64.

        pooled [N, G, D] twice: a compressor's keys and values; None is the mean of each block. chosen [Tq, G, n]
        int64: blocks to read instead of choosing them, as in `selection`. The blocks are None where the backend keeps
        them to itself.
        """
        raise NotImplementedError
