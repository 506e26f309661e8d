"""The whole VideoNSA layer as one op: pooling, compression, top-k, selection, window and gates, forward and backward.

Beyond its inputs and its output the forward keeps, for the backward, what `kept_bytes` says: one output and
log-sum-exp per branch, the pooled keys and values, and the chosen blocks. Its temporaries stay within WORKSPACE_BYTES.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nsa_kernels import checks
from nsa_kernels.blocks import Blocks
from nsa_kernels.chosen import fitting
from nsa_kernels.compression.op import as_bias
from nsa_kernels.layer_backward import layer_backward
from nsa_kernels.layer_forward import Plan, layer_forward
from nsa_kernels.mixed_precision import autocast


def video_nsa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    blocks: Blocks,
    *,
    pooled: tuple[Tensor, Tensor] | None = None,
    branches: Sequence[str] = checks.BRANCHES,
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
    strict: bool = True,
) -> Tensor:
    """The gated sum of the branches (VideoNSA, section 2). [Tq, H, D].

    q [Tq, H, D]; k, v [T, G, D]; gates [Tq, H, R], one column per branch in the order of `branches`, a subset of
    compression, selection, window; what is off costs nothing. pooled: a compressor's keys and values [N, G, D], the
    mean of each block by default. block_bias [N] is added to the compression logits. block_count, initial_blocks,
    local_blocks, token_budget, query_tile and leader: see `choose_blocks`; chosen [Tq, G, n] int32, blocks of the
    query's sample, none twice, -1 for none, replaces the choice; anything else in it is refused, for which the host
    waits for the device, or with strict=False ignored, without waiting. scale is D ** -0.5 by default. Differentiable
    in q, k, v, gates and pooled; two runs are bit-equal. Under autocast q, k, v and pooled are cast to its dtype.
    Raises ValueError for arguments that do not fit.
    """
    options: dict[str, Any] = {
        "pooled": pooled, "branches": branches, "block_count": block_count, "initial_blocks": initial_blocks,
        "local_blocks": local_blocks, "token_budget": token_budget, "window": window, "scale": scale,
        "block_bias": block_bias, "query_tile": query_tile, "leader": leader, "chosen": chosen,
        "strict": strict,
    }  # fmt: skip
    return video_nsa_with_blocks(q, k, v, gates, blocks, **options)[0]


def video_nsa_with_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    blocks: Blocks,
    *,
    pooled: tuple[Tensor, Tensor] | None = None,
    branches: Sequence[str] = checks.BRANCHES,
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
    strict: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """`video_nsa`, and the blocks that were read: [Tq, G, block_count] int32, or None without selection."""
    q, k, v = autocast(q, k, v)
    names = tuple(branches)
    checks.check_branches(names)
    checks.check_keys(q, k, v, blocks)
    checks.check_gates(gates, q, len(names))
    checks.check_bias(block_bias, blocks)
    if pooled is not None:
        checks.check_pair(pooled)
        keys, values = autocast(*pooled)
        pooled = keys, values
        checks.check_given_pooled(pooled, q, k, blocks)
    window = checks.check_window(window) if "window" in names else 0
    scale = checks.check_scale(scale, q)
    select = "selection" in names
    if select:
        checks.check_length(blocks)
    if select and chosen is not None:
        chosen = fitting(chosen, q, k.shape[1], blocks, strict)
        block_count = chosen.shape[2]
    elif select:
        checks.check_choice(blocks, block_count, initial_blocks, local_blocks, token_budget, leader, query_tile)
    if not select:
        chosen = None
    pooled_k, pooled_v = (None, None) if pooled is None else (x.contiguous() for x in pooled)
    shared = query_tile > 1 and select and chosen is None
    kept = _layer(
        q.contiguous(), k.contiguous(), v.contiguous(), gates.contiguous(), pooled_k, pooled_v,
        as_bias(block_bias), leader.contiguous() if shared and leader is not None else None,
        chosen, blocks.flat(), blocks.sizes, "compression" in names,
        block_count if select else 0, initial_blocks, local_blocks, token_budget or 0, query_tile if shared else 1,
        window, scale,
    )  # fmt: skip
    if select and chosen is None:
        chosen = kept[_places("compression" in names, True, pooled is not None, False).index("chosen")]
    return kept[0], chosen


def kept_bytes(
    queries: int,
    num_blocks: int,
    heads: int,
    groups: int,
    head_dim: int,
    element_size: int = 2,
    branches: Sequence[str] = checks.BRANCHES,
    block_count: int = 32,
) -> int:
    """What a forward keeps for its backward beside its inputs and its output, in bytes."""
    kept = len(branches) * queries * heads * (head_dim * element_size + 4)
    if "selection" in branches:
        kept += queries * groups * block_count * 4
    if "compression" in branches or "selection" in branches:
        kept += (1 + ("compression" in branches)) * num_blocks * groups * head_dim * element_size
    return kept


def _places(compression: bool, slots: bool | int, pooled: bool, chosen: bool, window: bool | int = False) -> list[str]:
    """What stands where in the list that the op returns."""
    names = ["out"]
    if not pooled and (compression or (slots and not chosen)):
        names += ["pooled_k", "pooled_v"] if compression else ["pooled_k"]
    if slots and not chosen:
        names += ["chosen"]
    if compression:
        names += ["compression", "compression_lse"]
    if slots:
        names += ["selection", "selection_lse"]
    if window:
        names += ["window", "window_lse"]
    return names


@torch.library.custom_op("nsa_kernels::video_nsa", mutates_args=())
def _layer(
    q: Tensor, k: Tensor, v: Tensor, gates: Tensor, pooled_k: Tensor | None, pooled_v: Tensor | None,
    bias: Tensor | None, leader: Tensor | None, chosen: Tensor | None, blocks: list[Tensor], sizes: list[int],
    compression: bool, slots: int, initial: int, local: int, budget: int, query_tile: int, window: int, scale: float,
) -> list[Tensor]:  # fmt: skip
    plan = Plan(compression, slots, initial, local, budget or None, query_tile, window, scale)
    joined = Blocks.join(blocks, sizes)
    kept = layer_forward(q, k, v, gates, pooled_k, pooled_v, bias, leader, chosen, joined, plan)
    return [kept[name] for name in _places(compression, slots, pooled_k is not None, chosen is not None, window)]


@_layer.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, gates: Tensor, pooled_k: Tensor | None, pooled_v: Tensor | None,
    bias: Tensor | None, leader: Tensor | None, chosen: Tensor | None, blocks: list[Tensor], sizes: list[int],
    compression: bool, slots: int, initial: int, local: int, budget: int, query_tile: int, window: int, scale: float,
) -> list[Tensor]:  # fmt: skip
    rows, heads, _ = q.shape
    num_blocks = Blocks.join(blocks, sizes).end.shape[0]

    def make(name: str) -> Tensor:
        if name.endswith("_lse"):
            shape = (rows, heads) if name == "selection_lse" else (heads, rows)
            return q.new_empty(shape, dtype=torch.float32)
        if name == "chosen":
            return q.new_empty((rows, k.shape[1], slots), dtype=torch.int32)
        return k.new_empty((num_blocks, *k.shape[1:])) if name.startswith("pooled") else torch.empty_like(q)

    return [make(name) for name in _places(compression, slots, pooled_k is not None, chosen is not None, window)]


@torch.library.custom_op("nsa_kernels::video_nsa_backward", mutates_args=())
def _layer_backward(
    q: Tensor, k: Tensor, v: Tensor, gates: Tensor, do: Tensor, pooled_k: Tensor | None, pooled_v: Tensor | None,
    bias: Tensor | None, chosen: Tensor | None, kept: list[Tensor], blocks: list[Tensor], sizes: list[int],
    compression: bool, slots: int, window: int, scale: float,
) -> list[Tensor]:  # fmt: skip
    given_pooled, given_chosen = pooled_k is not None, chosen is not None
    names = _places(compression, slots, given_pooled, given_chosen, window)[1:]
    found = dict(zip(names, kept, strict=True))
    if pooled_k is not None and pooled_v is not None:
        found |= {"pooled_k": pooled_k, "pooled_v": pooled_v}
    if chosen is not None:
        found["chosen"] = chosen
    plan = Plan(compression, slots, window=window, scale=scale)
    return layer_backward(q, k, v, gates, do, found, bias, Blocks.join(blocks, sizes), plan, given_pooled)


@_layer_backward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, gates: Tensor, do: Tensor, pooled_k: Tensor | None, pooled_v: Tensor | None,
    bias: Tensor | None, chosen: Tensor | None, kept: list[Tensor], blocks: list[Tensor], sizes: list[int],
    compression: bool, slots: int, window: int, scale: float,
) -> list[Tensor]:  # fmt: skip
    pooled = [x for x in (pooled_k, pooled_v) if x is not None and compression]
    return [torch.empty_like(x) for x in (q, k, v, gates, *pooled)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    q, k, v, gates, pooled_k, pooled_v, bias, _, chosen, blocks, sizes, compression, slots, *rest = inputs
    *_, window, scale = rest
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # else zeros as large as every branch's output would be made for each backward
    ctx.options = sizes, compression, slots, window, scale
    ctx.counts = len(output) - 1, len(blocks)
    ctx.given = [x is not None for x in (pooled_k, pooled_v, bias, chosen)]
    optional = [x for x in (pooled_k, pooled_v, bias, chosen) if x is not None]
    ctx.save_for_backward(q, k, v, gates, *optional, *output[1:], *blocks)


def _differentiate(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    if grads[0] is None:
        return *[None] * 9, [None] * ctx.counts[1], *[None] * 9
    saved = list(ctx.saved_tensors)
    q, k, v, gates = (saved.pop(0) for _ in range(4))
    pooled_k, pooled_v, bias, chosen = (saved.pop(0) if given else None for given in ctx.given)
    kept, blocks = saved[: ctx.counts[0]], saved[ctx.counts[0] :]
    found = _layer_backward(q, k, v, gates, grads[0], pooled_k, pooled_v, bias, chosen, kept, blocks, *ctx.options)
    pooled = found[4:] or [None, None]
    return *found[:4], *pooled, None, None, None, [None] * ctx.counts[1], *[None] * 9


_layer.register_autograd(_differentiate, setup_context=_save)
