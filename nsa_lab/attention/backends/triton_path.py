"""The ops of `reference` on Triton kernels (kernels/nsa_kernels), and `video_nsa`: three branches in one call.

The kernels' geometry is made once per context and partition and kept with them.
"""

import logging
import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nsa_lab.attention.backends.torch_path import Torch
from nsa_lab.attention.choice import BlockRule, Scorer
from nsa_lab.attention.query_tiles import query_tiles
from nsa_lab.attention.select import CompressionScorer, TokenBudget, TopN
from nsa_lab.layout import on_host
from nsa_lab.partition import Context, Partition

if TYPE_CHECKING:
    from nsa_kernels import Blocks

log = logging.getLogger(__name__)
_said: set[str] = set()


class Triton(Torch):
    """Triton kernels. A choice of blocks that has none is made as in `Torch`, which is said once."""

    fused = True

    def why_not(self, device: torch.device, named: bool) -> str | None:
        if device.type == "cpu" and not (named and os.environ.get("TRITON_INTERPRET") == "1"):
            return "it needs a CUDA device (named, and with TRITON_INTERPRET=1, it runs on a CPU for tests)"
        if find_spec("triton") is None:
            return "triton is not installed; pip install 'triton>=3.6'"
        from nsa_kernels import why_not as kernels_why_not

        return kernels_why_not(device)

    def chooses(self, scorer: Scorer, rule: BlockRule) -> bool:
        return type(scorer) is CompressionScorer and type(rule.rule) in (TopN, TokenBudget)

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
        from nsa_kernels import autocast, compression_attention

        q, pooled_k, pooled_v = autocast(q, pooled_k, pooled_v)
        blocks = kernel_blocks(context, partition)
        return compression_attention(q, pooled_k, pooled_v, blocks, scale=scale, block_bias=block_bias)[0]

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
        if not self.chooses(scorer, rule):
            what = f"{type(scorer).__name__} and {type(rule.rule).__name__}"
            if what not in _said:
                _said.add(what)
                log.info("no Triton kernel chooses blocks by %s: the choice is made in PyTorch", what)
            return super().select_blocks(
                q, pooled_k, context, partition, scale=scale, scorer=scorer, rule=rule, x=x, block_bias=block_bias
            )
        from nsa_kernels import autocast, choose_blocks

        q, pooled_k = autocast(q, pooled_k)
        return choose_blocks(
            q, pooled_k, kernel_blocks(context, partition), scale=scale, block_bias=block_bias, **_choice(rule, context)
        ).long()

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
        from nsa_kernels import autocast, selection_attention

        q, k, v = autocast(q, k, v)
        own = kernel_blocks(context, partition)
        return selection_attention(q, k, v, blocks.int(), own, scale=scale, strict=False)

    def window(self, q: Tensor, k: Tensor, v: Tensor, context: Context, *, size: int, scale: float) -> Tensor:
        from nsa_kernels import autocast, window_attention

        q, k, v = autocast(q, k, v)
        return window_attention(q, k, v, kernel_blocks(context), size=size, scale=scale)

    def dense(self, q: Tensor, k: Tensor, v: Tensor, context: Context, *, scale: float) -> Tensor:
        if len(q) == len(k):
            return super().dense(q, k, v, context, scale=scale)
        return self.window(q, k, v, context, size=len(k) + 1, scale=scale)

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
        from nsa_kernels import video_nsa_with_blocks

        out, blocks = video_nsa_with_blocks(
            q, k, v, gates, kernel_blocks(context, partition), branches=branches, pooled=pooled, window=window_size,
            scale=scale, block_bias=block_bias, chosen=None if chosen is None else chosen.int(), strict=False,
            **({} if rule is None else _choice(rule, context)),
        )  # fmt: skip
        return out.to(q.dtype), None if blocks is None else blocks.long()


def kernel_blocks(context: Context, partition: Partition | None = None) -> "Blocks":
    """The kernels' geometry of a partition of `context`; without one each sample is one block (window, dense)."""
    holder = context if partition is None else partition
    made = vars(holder).setdefault("kernel_blocks", {})
    if id(context) not in made:
        # The context is kept beside its blocks, so that its id stays its own.
        given = (context,) if partition is None else (context, partition)
        made[id(context)] = context, on_host(_kernel_blocks, *given)
    return made[id(context)][1]


def _kernel_blocks(context: Context, partition: Partition | None = None) -> "Blocks":
    from nsa_kernels import blocks_from_offsets

    samples = context.cu_seqlens
    if partition is None:
        return blocks_from_offsets(torch.unique(samples), samples, query_index=context.query_index)
    return blocks_from_offsets(
        partition.offsets, samples, order=partition.perm, query_index=context.query_index,
        start=partition.block_start, end=partition.block_end,
    )  # fmt: skip


def _choice(rule: BlockRule, context: Context) -> dict[str, Any]:
    leader = query_tiles(context, rule.query_tile).first.int() if rule.query_tile > 1 else None
    return {
        "block_count": rule.block_count, "initial_blocks": rule.initial_blocks, "local_blocks": rule.local_blocks,
        "query_tile": rule.query_tile, "leader": leader,
        "token_budget": rule.rule.config.token_budget if isinstance(rule.rule, TokenBudget) else None,
    }  # fmt: skip
