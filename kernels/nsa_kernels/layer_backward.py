"""The backward of `video_nsa`: gate gradients in one pass, then every branch adds to one dq, dk and dv.

The gates are applied inside the branches' kernels, so that no gated gradient of a branch is ever written.
"""

import torch
from torch import Tensor

from nsa_kernels.blocks import Blocks
from nsa_kernels.combine.backward import combine_backward
from nsa_kernels.compression.backward import compression_backward
from nsa_kernels.compression.pooling import pool_backward
from nsa_kernels.layer_forward import Plan, column
from nsa_kernels.runtime import compiled_together
from nsa_kernels.selection.backward import selection_backward
from nsa_kernels.window.backward import window_backward


@compiled_together
def layer_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    do: Tensor,
    kept: dict[str, Tensor],
    bias: Tensor | None,
    blocks: Blocks,
    plan: Plan,
    given_pooled: bool,
) -> list[Tensor]:
    """[dq, dk, dv, dgates], and d pooled_k and d pooled_v where they were given and the compression branch is on."""
    do = do.contiguous()
    branches = plan.branches
    dgates, _ = combine_backward([kept[name] for name in branches], gates, do, False)
    dq: Tensor | None = None
    pooled: list[Tensor] = []
    if plan.compression:
        dq, *pooled = compression_backward(
            q, kept["pooled_k"], kept["pooled_v"], do, kept["compression_lse"],
            column(gates, 0), column(dgates, 0), blocks, plan.scale, bias,
        )  # fmt: skip
    if plan.window:
        at = branches.index("window")
        dk, dv = (torch.empty_like(x, dtype=torch.float32) for x in (k, v))
        dq = window_backward(
            q, k, v, do, kept["window_lse"], column(gates, at), column(dgates, at), blocks, plan.window, plan.scale,
            dk, dv, dq,
        )  # fmt: skip
    else:
        dk, dv = (torch.zeros_like(x, dtype=torch.float32) for x in (k, v))
    if pooled and not given_pooled:
        dk += pool_backward(pooled[0], blocks)
        dv += pool_backward(pooled[1], blocks)
        pooled = []
    if plan.slots:
        at = branches.index("selection")
        gate = gates[:, :, at]
        dq = selection_backward(
            q, k, v, kept["chosen"], do, kept["selection_lse"], gate, gate * dgates[:, :, at], blocks, plan.scale,
            dk, dv, dq,
        )  # fmt: skip
    assert dq is not None
    return [dq, dk.to(k.dtype), dv.to(v.dtype), dgates.to(gates.dtype), *pooled]
