"""The whole VideoNSA layer as one op: pooling, compression, top-k, selection, window and gates, forward and backward.

Beyond its inputs and its output the forward keeps, for the backward, what `kept_bytes` says: one output and
log-sum-exp per branch, the pooled keys and values, and the chosen blocks. Its temporaries stay within WORKSPACE_BYTES.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, ParamSpec

import torch
from torch import Tensor

from nsa_kernels import checks
from nsa_kernels.blocks import Blocks
from nsa_kernels.chosen import fitting
from nsa_kernels.compression.op import as_bias
from nsa_kernels.layer_backward import layer_backward
from nsa_kernels.layer_forward import Plan, layer_forward
from nsa_kernels.mixed_precision import autocast
from nsa_kernels.schema import schema_of

Given = ParamSpec("Given")


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
    """The gated sum of the branches (VideoNSA, section 2), [Tq, H, D], and the blocks that were read.

    q [Tq, H, D]; k, v [T, G, D]; gates [Tq, H, R], one column per branch in the order of `branches`, a subset of
    compression, selection, window; what is off costs nothing. pooled: a compressor's keys and values [N, G, D], the
    mean of each block by default. block_bias [N] is added to the compression logits. block_count, initial_blocks,
    local_blocks, token_budget, query_tile and leader: see `choose_blocks`; chosen [Tq, G, n] int32, blocks of the
    query's sample, none twice, -1 for none, replaces the choice; anything else in it is refused, for which the host
    waits for the device, or with strict=False ignored, without waiting. scale is D ** -0.5 by default. The blocks are
    [Tq, G, n] int32, None without selection. Differentiable in q, k, v, gates and pooled; two runs are bit-equal. Under
    autocast q, k, v and pooled are cast to its dtype. Raises ValueError for arguments that do not fit.
    """
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
    call = _Call(
        q.contiguous(), k.contiguous(), v.contiguous(), gates.contiguous(), pooled_k, pooled_v,
        as_bias(block_bias), leader.contiguous() if shared and leader is not None else None,
        chosen, blocks.flat(), blocks.sizes, "compression" in names,
        block_count if select else 0, initial_blocks, local_blocks, token_budget or 0, query_tile if shared else 1,
        window, scale,
    )  # fmt: skip
    kept = _layer(*call)
    return kept[0], kept[call.kept.index("chosen")] if "chosen" in call.kept else chosen


def _without_blocks(both: Callable[Given, tuple[Tensor, Tensor | None]]) -> Callable[Given, Tensor]:
    @functools.wraps(both)
    def output(*args: Given.args, **options: Given.kwargs) -> Tensor:
        return both(*args, **options)[0]

    output.__name__ = output.__qualname__ = "video_nsa"
    output.__doc__ = f"The first of `{both.__name__}`. {both.__doc__}"
    return output


video_nsa = _without_blocks(video_nsa_with_blocks)


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


class _Call(NamedTuple):
    """What the op takes: tensors as `video_nsa` has them, the blocks flat, and the fields of Plan."""

    q: Tensor
    k: Tensor
    v: Tensor
    gates: Tensor
    pooled_k: Tensor | None
    pooled_v: Tensor | None
    bias: Tensor | None
    leader: Tensor | None
    chosen: Tensor | None
    blocks: list[Tensor]
    sizes: list[int]
    compression: bool
    slots: int
    initial: int
    local: int
    budget: int
    query_tile: int
    window: int
    scale: float

    @property
    def plan(self) -> Plan:
        return Plan(*self[11:])  # what comes after the sizes

    @property
    def joined(self) -> Blocks:
        return Blocks.join(self.blocks, self.sizes)

    @property
    def kept(self) -> list[str]:
        """What stands where in the list that the op returns: the output, then what its backward needs."""
        names = ["out"]
        choose = self.slots > 0 and self.chosen is None
        if self.pooled_k is None and (self.compression or choose):
            names += ["pooled_k", "pooled_v"] if self.compression else ["pooled_k"]
        if choose:
            names += ["chosen"]
        for branch in self.plan.branches:
            names += [branch, f"{branch}_lse"]
        return names

    def like(self, name: str) -> Tensor:
        """An empty tensor of the shape of what is kept under `name`."""
        rows, heads, _ = self.q.shape
        if name.endswith("_lse"):
            shape = (rows, heads) if name == "selection_lse" else (heads, rows)
            return self.q.new_empty(shape, dtype=torch.float32)
        if name == "chosen":
            return self.q.new_empty((rows, self.k.shape[1], self.slots), dtype=torch.int32)
        pooled = (self.joined.end.shape[0], *self.k.shape[1:])
        return self.k.new_empty(pooled) if name.startswith("pooled") else torch.empty_like(self.q)


@torch.library.custom_op("nsa_kernels::video_nsa", mutates_args=(), schema=schema_of(_Call))
def _layer(*given: Any) -> list[Tensor]:
    call = _Call(*given)
    kept = layer_forward(*call[:9], call.joined, call.plan)
    return [kept[name] for name in call.kept]


@_layer.register_fake
def _(*given: Any) -> list[Tensor]:
    call = _Call(*given)
    return [call.like(name) for name in call.kept]


@torch.library.custom_op(
    "nsa_kernels::video_nsa_backward", mutates_args=(), schema=schema_of(_Call, do=Tensor, kept=list[Tensor])
)
def _layer_backward(do: Tensor, kept: list[Tensor], *given: Any) -> list[Tensor]:
    """The gradients of q, k, v and gates, and of pooled keys and values where they were given and compressed.

    kept: what the forward returned, but for the output.
    """
    call = _Call(*given)
    inputs = {"pooled_k": call.pooled_k, "pooled_v": call.pooled_v, "chosen": call.chosen}
    found = {name: x for name, x in inputs.items() if x is not None} | dict(zip(call.kept[1:], kept, strict=True))
    heads = call.q, call.k, call.v, call.gates
    return layer_backward(*heads, do, found, call.bias, call.joined, call.plan, call.pooled_k is not None)


@_layer_backward.register_fake
def _(do: Tensor, kept: list[Tensor], *given: Any) -> list[Tensor]:
    call = _Call(*given)
    pooled = [x for x in (call.pooled_k, call.pooled_v) if x is not None and call.compression]
    return [torch.empty_like(x) for x in (call.q, call.k, call.v, call.gates, *pooled)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    call = _Call(*inputs)._replace(leader=None)
    tensors = {name: x for name, x in call._asdict().items() if isinstance(x, Tensor)}
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # else zeros as large as every branch's output would be made for each backward
    ctx.names, ctx.counts = list(tensors), (len(output) - 1, len(call.blocks))
    ctx.call = call._replace(**dict.fromkeys(tensors), blocks=[])  # type: ignore[arg-type]
    ctx.save_for_backward(*tensors.values(), *output[1:], *call.blocks)


def _differentiate(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    nothing = _Call(*[None] * len(_Call._fields))._replace(blocks=[None] * ctx.counts[1])  # type: ignore
    if grads[0] is None:
        return nothing
    saved = iter(ctx.saved_tensors)
    tensors = {name: next(saved) for name in ctx.names}
    kept = [next(saved) for _ in range(ctx.counts[0])]
    found = _layer_backward(grads[0], kept, *ctx.call._replace(**tensors, blocks=list(saved)))
    return nothing._replace(**dict(zip(("q", "k", "v", "gates", "pooled_k", "pooled_v"), found, strict=False)))


_layer.register_autograd(_differentiate, setup_context=_save)
