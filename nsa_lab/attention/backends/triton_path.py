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

from nsa_lab.attention.backends import torch_path
from nsa_lab.attention.query_tiles import query_tiles
from nsa_lab.attention.select import BlockRule, Scorer, compression_scores
from nsa_lab.partition import Context, Partition

if TYPE_CHECKING:
    from nsa_kernels import Blocks

log = logging.getLogger(__name__)
_said: set[str] = set()


def why_not(device: torch.device, named: bool) -> str | None:
    """Triton kernels run on CUDA devices; on a CPU, for tests, under TRITON_INTERPRET=1 and where asked for by name."""
    if device.type == "cpu" and not (named and os.environ.get("TRITON_INTERPRET") == "1"):
        return "it needs a CUDA device (named, and with TRITON_INTERPRET=1, it runs on a CPU for tests)"
    if find_spec("triton") is None:
        return "triton is not installed; pip install 'triton>=3.6'"
    from nsa_kernels import why_not as kernels_why_not

    return kernels_why_not(device)


def compression(
    q: Tensor,
    pooled_k: Tensor,
    pooled_v: Tensor,
    context: Context,
    partition: Partition,
    *,
    scale: float,
    block_bias: Tensor | None = None,
) -> Tensor:
    """See reference.compression."""
    from nsa_kernels import autocast, compression_attention

    q, pooled_k, pooled_v = autocast(q, pooled_k, pooled_v)
    blocks = kernel_blocks(context, partition)
    return compression_attention(q, pooled_k, pooled_v, blocks, scale=scale, block_bias=block_bias)[0]


def select_blocks(
    q: Tensor,
    pooled_k: Tensor,
    context: Context,
    partition: Partition,
    *,
    scale: float,
    scorer: Scorer,
    rule: BlockRule,
    block_bias: Tensor | None = None,
) -> Tensor:
    """See reference.select_blocks. A scorer or a rule without a kernel runs on the torch path, and that is said."""
    if not has_kernel(scorer, rule):
        what = f"scorer {scorer.__name__}, rule {rule.kind}"
        if what not in _said:
            _said.add(what)
            log.info("no Triton kernel chooses blocks by %s: this step runs on the torch path", what)
        return torch_path.select_blocks(
            q, pooled_k, context, partition, scale=scale, scorer=scorer, rule=rule, block_bias=block_bias
        )
    from nsa_kernels import autocast, choose_blocks

    q, pooled_k = autocast(q, pooled_k)
    return choose_blocks(
        q, pooled_k, kernel_blocks(context, partition), scale=scale, block_bias=block_bias, **_choice(rule, context)
    ).long()


def selection(
    q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, context: Context, partition: Partition, *, scale: float
) -> Tensor:
    """See reference.selection."""
    from nsa_kernels import autocast, selection_attention

    q, k, v = autocast(q, k, v)
    return selection_attention(q, k, v, blocks.int(), kernel_blocks(context, partition), scale=scale)


def window(q: Tensor, k: Tensor, v: Tensor, context: Context, *, size: int, scale: float) -> Tensor:
    """See reference.window."""
    from nsa_kernels import autocast, window_attention

    q, k, v = autocast(q, k, v)
    return window_attention(q, k, v, kernel_blocks(context), size=size, scale=scale)


def dense(q: Tensor, k: Tensor, v: Tensor, context: Context, *, scale: float) -> Tensor:
    """See reference.dense. PyTorch's own attention where every token is a query, otherwise a window over everything."""
    if len(q) == len(k):
        return torch_path.dense(q, k, v, context, scale=scale)
    return window(q, k, v, context, size=len(k) + 1, scale=scale)


def video_nsa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    context: Context,
    partition: Partition,
    *,
    branches: Sequence[str],
    rule: BlockRule,
    window_size: int,
    pooled: tuple[Tensor, Tensor] | None,
    block_bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor | None]:
    """The gated sum of `branches` [Tq, H, D], gates [Tq, H, R] in their order; and the blocks [Tq, G, n] int64.

    pooled [N, G, D] twice: a compressor's keys and values; None is the mean of each block.
    """
    from nsa_kernels import video_nsa_with_blocks

    out, blocks = video_nsa_with_blocks(
        q, k, v, gates, kernel_blocks(context, partition), branches=branches, pooled=pooled, window=window_size,
        scale=scale, block_bias=block_bias, **(_choice(rule, context) if "selection" in branches else {}),
    )  # fmt: skip
    return out.to(q.dtype), None if blocks is None else blocks.long()


def has_kernel(scorer: Scorer, rule: BlockRule) -> bool:
    """Whether the top-k kernel chooses as this scorer and this rule do."""
    return scorer is compression_scores and rule.kind in ("top_n", "token_budget")


def kernel_blocks(context: Context, partition: Partition | None = None) -> "Blocks":
    """The kernels' geometry of a partition of `context`; without one each sample is one block (window, dense)."""
    holder = context if partition is None else partition
    made = vars(holder).setdefault("kernel_blocks", {})
    if id(context) not in made:
        # The context is kept beside its blocks, so that its id stays its own.
        made[id(context)] = context, _kernel_blocks(context, partition)
    return made[id(context)][1]


def _kernel_blocks(context: Context, partition: Partition | None) -> "Blocks":
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
        "token_budget": rule.token_budget if rule.kind == "token_budget" else None,
    }  # fmt: skip
