"""The definition of `video_nsa`: the references of its ops, put together; plain PyTorch, differentiable."""

from collections.abc import Sequence

from torch import Tensor

from nsa_kernels.blocks import Blocks
from nsa_kernels.combine.reference import combine_reference
from nsa_kernels.compression.reference import compression_reference, pool_reference
from nsa_kernels.selection.reference import selection_reference
from nsa_kernels.topk.reference import topk_reference
from nsa_kernels.window.reference import window_reference


def video_nsa_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    blocks: Blocks,
    *,
    pooled: tuple[Tensor, Tensor] | None = None,
    branches: Sequence[str] = ("compression", "selection", "window"),
    block_count: int = 32,
    initial_blocks: int = 0,
    local_blocks: int = 1,
    token_budget: int | None = None,
    window: int = 256,
    scale: float | None = None,
    block_bias: Tensor | None = None,
    query_tile: int = 1,
    leader: Tensor | None = None,
    chosen: Tensor | None = None,
) -> Tensor:
    """As `video_nsa`, in any floating dtype, under dense masks: memory grows with Tq x T."""
    scale = q.shape[2] ** -0.5 if scale is None else scale
    pooled_k, pooled_v = (pool_reference(x, blocks) for x in (k, v)) if pooled is None else pooled
    outputs = []
    if "compression" in branches:
        outputs.append(compression_reference(q, pooled_k, pooled_v, blocks, scale=scale, block_bias=block_bias))
    if "selection" in branches:
        if chosen is None:
            chosen = topk_reference(
                q, pooled_k, blocks, scale=scale, block_count=block_count, initial_blocks=initial_blocks,
                local_blocks=local_blocks, token_budget=token_budget, block_bias=block_bias,
                leader=leader if query_tile > 1 else None,
            )  # fmt: skip
        outputs.append(selection_reference(q, k, v, chosen, blocks, scale=scale))
    if "window" in branches:
        outputs.append(window_reference(q, k, v, blocks, size=window, scale=scale))
    return combine_reference(outputs, gates)
