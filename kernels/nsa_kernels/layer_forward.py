"""The forward of `video_nsa`, kernel by kernel."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nsa_kernels.blocks import Blocks
from nsa_kernels.combine.forward import combine_forward
from nsa_kernels.compression.forward import compression_forward
from nsa_kernels.compression.pooling import pool_forward
from nsa_kernels.runtime import compiled_together
from nsa_kernels.selection.forward import selection_forward
from nsa_kernels.topk.forward import topk_forward
from nsa_kernels.window.forward import window_forward


@dataclass(frozen=True)
class Plan:
    """Which branches run, and their sizes; slots and window are 0 where the branch is off, budget 0 where none is."""

    compression: bool
    slots: int
    initial: int = 0
    local: int = 1
    budget: int = 0
    query_tile: int = 1
    window: int = 0
    scale: float = 1.0

    @property
    def branches(self) -> list[str]:
        on = {"compression": self.compression, "selection": self.slots > 0, "window": self.window > 0}
        return [name for name, enabled in on.items() if enabled]


@compiled_together
def layer_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    pooled_k: Tensor | None,
    pooled_v: Tensor | None,
    bias: Tensor | None,
    leader: Tensor | None,
    chosen: Tensor | None,
    blocks: Blocks,
    plan: Plan,
) -> dict[str, Tensor]:
    """`out`, and what the backward needs: each branch's output and log-sum-exp, pooled keys and values, chosen."""
    kept: dict[str, Tensor] = {}
    choose = plan.slots > 0 and chosen is None
    if plan.compression or choose:
        if pooled_k is None:
            pooled_k = kept["pooled_k"] = pool_forward(k, blocks)
        if pooled_v is None and plan.compression:
            pooled_v = kept["pooled_v"] = pool_forward(v, blocks)
        values = pooled_v if plan.compression else None
        out, lse = compression_forward(q, pooled_k, values, blocks, plan.scale, bias)
        if out is not None:
            kept |= {"compression": out, "compression_lse": lse}
        if choose:
            chosen = kept["chosen"] = topk_forward(
                q, pooled_k, lse, blocks, plan.scale, plan.slots, initial=plan.initial, local=plan.local,
                budget=plan.budget or None, leader=leader, query_tile=plan.query_tile, bias=bias,
            )  # fmt: skip
    if chosen is not None:
        kept["selection"], kept["selection_lse"] = selection_forward(q, k, v, chosen, blocks, plan.scale)
    if plan.window:
        kept["window"], kept["window_lse"] = window_forward(q, k, v, blocks, plan.window, plan.scale)
    kept["out"] = combine_forward([kept[name] for name in plan.branches], gates)
    return kept


def column(x: Tensor, number: int) -> Tensor:
    """Column `number` of x [Tq, H, R] as [H, Tq] float32."""
    return x[:, :, number].to(torch.float32).T.contiguous()
