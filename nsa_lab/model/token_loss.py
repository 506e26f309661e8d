"""Cross-entropy of hidden rows without the logits of all of them: rows x vocabulary is cut into chunks of rows."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS = 1024
"""Rows whose logits exist at a time: with Qwen's 152,064 tokens 0.6 GB in float32."""


@dataclass(frozen=True)
class TokenLoss:
    """Of rows that predict a token each: `loss`, the mean cross-entropy; `hits` [n] bool, where it is the argmax."""

    loss: Tensor
    hits: Tensor


def token_loss(hidden: Tensor, weight: Tensor, targets: Tensor, rows: int | None = None) -> TokenLoss:
    """hidden [n, width], weight [vocabulary, width] of the head, targets [n] int64; logits are float32.

    Up to `rows` (default ROWS) rows it is `F.cross_entropy` of all logits. Beyond that each chunk's logits are made in
    the forward, and once more in the backward: only hidden rows and one log-sum-exp a row are kept, and the weight's
    gradient is summed in float32. Under autocast the product runs in its dtype. The mean over no rows is zero, with a
    gradient of zeros: a process may have no labelled row of a shared sample.
    """
    if not len(targets):
        return TokenLoss(F.linear(hidden, weight).float().sum(), targets.bool())
    rows = ROWS if rows is None else rows
    if len(targets) <= rows:
        logits = F.linear(hidden, weight).float()
        return TokenLoss(F.cross_entropy(logits, targets), logits.detach().argmax(-1) == targets)
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        hidden, weight = (x.to(torch.get_autocast_dtype(device)) for x in (hidden, weight))
    total, hits = _Chunked.apply(hidden, weight, targets, rows)
    return TokenLoss(total / len(targets), hits)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        total = hidden.new_zeros((), dtype=torch.float32)
        lse, hits = [], []
        for x, target in zip(hidden.split(rows), targets.split(rows), strict=True):
            logits = _logits(x, weight)
            lse.append(logits.logsumexp(-1))
            total += (lse[-1] - logits.gather(1, target[:, None])[:, 0]).sum()
            hits.append(logits.argmax(-1) == target)
        ctx.save_for_backward(hidden, weight, targets, torch.cat(lse))
        ctx.rows = rows
        correct = torch.cat(hits)
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden, weight, targets, lse = ctx.saved_tensors
        d_weight = torch.zeros_like(weight, dtype=torch.float32)
        d_hidden = []
        for x, target, own in zip(hidden.split(ctx.rows), targets.split(ctx.rows), lse.split(ctx.rows), strict=True):
            d_logits = _logits(x, weight).sub_(own[:, None]).exp_()
            d_logits.scatter_add_(1, target[:, None], -torch.ones_like(own)[:, None])
            d = d_logits.mul_(grad).to(weight.dtype)
            d_hidden.append(d @ weight)
            d_weight += d.T @ x
        return torch.cat(d_hidden), d_weight.to(weight.dtype), None, None


def _logits(x: Tensor, weight: Tensor) -> Tensor:
    """As under no autocast, whose cast has been made."""
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x, weight).float()
