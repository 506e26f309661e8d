"""Nothing is timed before it is right: every op and the layer against their float64 references, on odd samples."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nsa_kernels.bench.inputs import Heads, Inputs, leaders, random_inputs
from nsa_kernels.bench.jobs import Design
from nsa_kernels.bench.names import FORWARD_ONLY, PARTS, WALKS
from nsa_kernels.blocks import Blocks, uniform_blocks
from nsa_kernels.combine.forward import combine_forward
from nsa_kernels.combine.products import products
from nsa_kernels.combine.reference import combine_reference
from nsa_kernels.compression.forward import compression_forward
from nsa_kernels.compression.pooling import pool_forward
from nsa_kernels.compression.reference import compression_reference, pool_reference
from nsa_kernels.dense import closed, probabilities
from nsa_kernels.reference import video_nsa_reference
from nsa_kernels.selection.backward import selection_backward
from nsa_kernels.selection.forward import selection_forward
from nsa_kernels.selection.reference import selection_reference
from nsa_kernels.topk.forward import topk_forward
from nsa_kernels.window.forward import window_forward
from nsa_kernels.window.reference import window_reference
from nsa_kernels.workspace import BACKWARD_KEYS

LIMITS = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 2e-2}
"""Greatest relative error, in the Frobenius norm, by dtype."""


@dataclass(frozen=True)
class Check:
    name: str
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.error <= self.limit


def check_design(
    design: Design, heads: Heads, window: int, dtype: torch.dtype, device: torch.device
) -> Iterator[Check]:
    """Three packed samples: one token, a few blocks with a ragged tail, and more blocks than a query may choose."""
    lengths = [1, 3 * design.block_size + 5, (design.block_count * 5 // 4 + 4) * design.block_size + 13]
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(device)
    x = random_inputs(sum(lengths), heads, dtype, device, seed=1)
    blocks, scale = uniform_blocks(bounds, design.block_size), heads.dim**-0.5
    leader = None
    if design.query_tile > 1:
        parts = [leaders(n, design.query_tile, device) + int(a) for n, a in zip(lengths, bounds[:-1], strict=True)]
        leader = torch.cat(parts)
    exact = Inputs(*(t.double().requires_grad_() for t in (x.q, x.k, x.v, x.gates, x.do)))
    limit = LIMITS[dtype]
    pooled_k, pooled_v = pool_forward(x.k, blocks), pool_forward(x.v, blocks)
    compressed, lse = compression_forward(x.q, pooled_k, pooled_v, blocks, scale)
    assert compressed is not None
    chosen = topk_forward(
        x.q, pooled_k, lse, blocks, scale, design.block_count, local=1, leader=leader, query_tile=design.query_tile
    )
    if leader is None:
        means = pool_reference(exact.k, blocks), pool_reference(exact.v, blocks)
        yield Check("pool", relative(pooled_k, means[0]), limit)
        expected = compression_reference(exact.q, *means, blocks, scale=scale)
        yield Check("compression", relative(compressed, expected), limit)
        score = importance(exact.q, means[0], blocks, scale)
        yield Check("topk", lost_importance(score, chosen, blocks), limit)
        selected, _ = selection_forward(x.q, x.k, x.v, chosen, blocks, scale)
        expected = selection_reference(exact.q, exact.k, exact.v, chosen, blocks, scale=scale)
        yield Check("selection", relative(selected, expected), limit)
        for walk, options in WALKS.items():
            walked, lse = selection_forward(x.q, x.k, x.v, chosen, blocks, scale, **options)
            yield Check(walk, relative(walked, expected), limit)
            if walk not in FORWARD_ONLY:
                error = gradient_error(x, exact, chosen, blocks, scale, gathered=options["gathered"])
                yield Check(f"{walk} gradients", error, limit)
        for op, most in PARTS.items():
            if design.block_size > most:
                yield Check(op, gradient_error(x, exact, chosen, blocks, scale, most), limit)
        windowed, _ = window_forward(x.q, x.k, x.v, blocks, window, scale)
        expected = window_reference(exact.q, exact.k, exact.v, blocks, size=window, scale=scale)
        yield Check("window", relative(windowed, expected), limit)
        outputs = [compressed, selected, windowed]
        expected = combine_reference([o.double() for o in outputs], exact.gates)
        yield Check("combine", relative(combine_forward(outputs, x.gates), expected), limit)
    else:
        yield Check("topk shares", float((chosen != chosen[leader.long()]).sum()), 0.0)
    yield from _check_layer(x, exact, blocks, chosen, design, window, leader, limit)


def _check_layer(
    x: Inputs, exact: Inputs, blocks: Blocks, chosen: Tensor, design: Design, window: int, leader: Tensor | None,
    limit: float,
) -> Iterator[Check]:  # fmt: skip
    """The layer makes its own choice, which is `chosen` again; the reference is given it."""
    from nsa_kernels import video_nsa

    leaves = [t.detach().requires_grad_() for t in (x.q, x.k, x.v, x.gates)]
    q, k, v, gates = leaves
    out = video_nsa(
        q, k, v, gates, blocks, block_count=design.block_count, window=window, query_tile=design.query_tile,
        leader=leader,
    )  # fmt: skip
    wide = [exact.q, exact.k, exact.v, exact.gates]
    expected = video_nsa_reference(
        exact.q, exact.k, exact.v, exact.gates, blocks, window=window, chosen=chosen
    )  # fmt: skip
    yield Check("layer", relative(out, expected), limit)
    found = torch.autograd.grad(out, leaves, x.do)
    wanted = torch.autograd.grad(expected, wide, exact.do)
    for name, a, b in zip(("q", "k", "v", "gates"), found, wanted, strict=True):
        yield Check(f"layer d{name}", relative(a, b), limit)


def relative(found: Tensor, expected: Tensor) -> float:
    """Frobenius norm of the difference over that of the expected; NaN counts as infinite."""
    error = ((found.double() - expected).norm() / expected.norm()).item()
    return error if error == error else float("inf")


def gradient_error(
    x: Inputs, exact: Inputs, chosen: Tensor, blocks: Blocks, scale: float, most: int = BACKWARD_KEYS,
    gathered: bool | None = None,
) -> float:  # fmt: skip
    """The greatest of the selection's gradients of q, k and v; most, gathered: see `selection_backward`."""
    out, lse = selection_forward(x.q, x.k, x.v, chosen, blocks, scale)
    dk, dv = (torch.zeros_like(x.k, dtype=torch.float32) for _ in range(2))
    delta = products(x.do, out).contiguous()
    dq = selection_backward(
        x.q, x.k, x.v, chosen, x.do, lse, None, delta, blocks, scale, dk, dv, most=most, gathered=gathered
    )  # fmt: skip
    expected = selection_reference(exact.q, exact.k, exact.v, chosen, blocks, scale=scale)
    wanted = torch.autograd.grad(expected, (exact.q, exact.k, exact.v), exact.do)
    return max(relative(found, want) for found, want in zip((dq, dk, dv), wanted, strict=True))


@torch.no_grad()
def importance(q: Tensor, pooled_k: Tensor, blocks: Blocks, scale: float) -> Tensor:
    """[Tq, G, N]: probability summed over the group's heads; more than that for the own block, -1 for an open one."""
    visible, ratio = closed(blocks)[:, None], q.shape[1] // pooled_k.shape[1]
    score = probabilities(q, pooled_k, visible, scale).unflatten(1, (-1, ratio)).sum(2)
    score = torch.where(visible, score, -1.0)
    own = blocks.block_of_query.long()[:, None, None].expand(-1, score.shape[1], 1)
    return score.scatter(2, own, ratio + 1.0)


def lost_importance(score: Tensor, chosen: Tensor, blocks: Blocks) -> float:
    """Greatest share of the best choice's importance that a query misses; infinite where the choice breaks a rule:
    its own block, then closed blocks only, as many as there are up to the slots, ascending."""
    best = score.topk(min(chosen.shape[2], score.shape[2]), -1).values
    taken = chosen >= 0
    got = torch.where(taken, score.gather(2, chosen.long().clamp(min=0)), 0.0)
    rules = bool((got >= 0).all() and (taken.sum(-1) == (best >= 0).sum(-1)).all())
    rules = rules and bool((chosen == blocks.block_of_query[:, None, None]).any(-1).all())
    rules = rules and bool(((chosen[..., 1:] > chosen[..., :-1]) | ~taken[..., 1:]).all())
    most = best.clamp(min=0).sum(-1)
    return ((most - got.sum(-1)) / most).max().item() if rules else float("inf")
