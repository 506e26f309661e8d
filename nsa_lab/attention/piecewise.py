"""Attention in pieces: forward without a graph, backward by recomputing each piece.

Plain autograd through slices would hold every piece and allocate a full-size gradient for each; here nothing of
size Tq x T is held, and gradients are added up in place.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nsa_lab.attention import groups as pieces
from nsa_lab.attention.groups import Group

PieceAttention = Callable[[Group, Tensor, Tensor, Tensor], Tensor]
"""(group, q [U, C, H, D], k [U, K, G, D], v [U, K, G, D]) to [U, C, H, D]."""


def over_groups(piece: PieceAttention, groups: list[Group], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`piece` of every group, put together in packed order: q [Tq, H, D], k and v [T, G, D] to [Tq, H, D]."""
    if not groups:
        return q * 0
    if sum(group.rows.shape[1] * group.keys.numel() for group in groups) * k.shape[1] * 4 <= pieces.PIECE_BYTES:
        return torch.cat([group.flat_rows(piece(group, *_take(group, q, k, v))) for group in groups])
    return _Piecewise.apply(piece, groups, q, k, v)


def _take(group: Group, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return group.take_rows(q), group.take_keys(k), group.take_keys(v)


class _Piecewise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, piece: PieceAttention, groups: list[Group], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.piece, ctx.groups = piece, groups
        ctx.save_for_backward(q, k, v)
        out = torch.empty_like(q)
        for group in groups:
            out[group.flat_rows(group.rows)] = group.flat_rows(piece(group, *_take(group, q, k, v)))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor, Tensor, Tensor]:
        q, k, v = ctx.saved_tensors
        grad_q, grad_k, grad_v = (torch.zeros_like(x) for x in (q, k, v))
        for group in ctx.groups:
            with torch.enable_grad():
                inputs = [x.detach().requires_grad_() for x in _take(group, q, k, v)]
                out = group.flat_rows(ctx.piece(group, *inputs))
            rows, keys = group.flat_rows(group.rows), group.flat_keys(group.keys)
            piece_q, piece_k, piece_v = torch.autograd.grad(out, inputs, grad[rows])
            grad_q[rows] = group.flat_rows(piece_q)
            grad_k.index_add_(0, keys, group.flat_keys(piece_k))
            grad_v.index_add_(0, keys, group.flat_keys(piece_v))
        return None, None, grad_q, grad_k, grad_v
