"""The public op of `topk`."""

from typing import Any

import torch
from torch import Tensor

from nsa_kernels.blocks import Blocks
from nsa_kernels.checks import check, check_bias, check_choice, check_pooled, check_queries, check_scale
from nsa_kernels.compression.op import as_bias, compression_lse
from nsa_kernels.topk.forward import topk_forward


@torch.no_grad()
def choose_blocks(
    q: Tensor,
    pooled_k: Tensor,
    blocks: Blocks,
    *,
    block_count: int = 32,
    initial_blocks: int = 0,
    local_blocks: int = 1,
    token_budget: int | None = None,
    scale: float | None = None,
    block_bias: Tensor | None = None,
    query_tile: int = 1,
    leader: Tensor | None = None,
    lse: Tensor | None = None,
) -> Tensor:
    """The blocks each (query, group) reads: [Tq, G, block_count] int32 ascending, -1 past the last; no gradient.

    A block scores its compression probability, summed over the group's heads. First come the sample's `initial_blocks`
    that have begun and the `local_blocks` that end with the query's own, then the best closed ones, equal ones
    earlier block first. With `token_budget` blocks rank by score per token, and the list ends before the block that
    would exceed it. With query_tile > 1, leader [Tq] int32 names the first query of each run of at most `query_tile`
    queries that share a choice: their scores are summed, forced and closed are told at the run's last query, and the
    local blocks reach from the first query's to the last one's. A run ends with its sample; a query whose leader leads
    no run chooses nothing. lse: of `compression_attention`, where it is at
    hand. Raises ValueError for arguments that do not fit.
    """
    check_queries(q, blocks)
    check_pooled(q, pooled_k, None, blocks)
    check_bias(block_bias, blocks)
    check_choice(blocks, block_count, initial_blocks, local_blocks, token_budget, leader, query_tile)
    scale = check_scale(scale, q)
    lse = compression_lse(q, pooled_k, blocks, scale=scale, block_bias=block_bias) if lse is None else lse
    wanted = [q.shape[1], q.shape[0]]
    check(list(lse.shape) == wanted and lse.dtype == torch.float32, f"lse must be float32 {wanted}")
    inputs = q.contiguous(), pooled_k.contiguous(), lse.contiguous(), as_bias(block_bias)
    leader = None if leader is None else leader.contiguous()
    forced = initial_blocks, local_blocks, token_budget or 0, query_tile
    return _topk(*inputs, leader, blocks.flat(), blocks.sizes, scale, block_count, *forced)


@torch.library.custom_op("nsa_kernels::topk", mutates_args=())
def _topk(
    q: Tensor,
    pooled_k: Tensor,
    lse: Tensor,
    bias: Tensor | None,
    leader: Tensor | None,
    blocks: list[Tensor],
    sizes: list[int],
    scale: float,
    count: int,
    initial: int,
    local: int,
    budget: int,
    query_tile: int,
) -> Tensor:
    return topk_forward(
        q, pooled_k, lse, Blocks.join(blocks, sizes), scale, count, initial=initial, local=local, budget=budget or None,
        leader=leader, query_tile=query_tile, bias=bias,
    )  # fmt: skip


@_topk.register_fake
def _(
    q: Tensor,
    pooled_k: Tensor,
    lse: Tensor,
    bias: Tensor | None,
    leader: Tensor | None,
    blocks: list[Tensor],
    sizes: list[int],
    scale: float,
    count: int,
    *args: Any,
) -> Tensor:
    return q.new_empty((q.shape[0], pooled_k.shape[1], count), dtype=torch.int32)
