"""Boundaries that are learned: a router that compares each token with the one before (H-Net, arXiv 2507.07955)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nsa_lab.errors import Problem
from nsa_lab.partition.base import Context, Partition, partition_from_starts
from nsa_lab.partition.novelty import Averaged
from nsa_lab.partition.segments import next_start, place_in_run


@dataclass
class RouterLearning:
    """Weight of the ratio loss, and how many layers share one router (null: all)."""

    loss_weight: float = 0.03
    group_size: int | None = None


class Router(Averaged):
    """A block opens where p = (1 - cos(W_q x_t, W_k x_{t-1})) / 2 is at least 0.5, and at the cap.

    W_q and W_k start as the identity, a detector of change. Gradient reaches them through `confidence`: p of a block
    that the router opened, 1 - p of one that the cap forced. The ratio loss holds the share F of openings near 1 / N,
    N being the block size: N / (N - 1) ((N - 1) F G + (1 - F)(1 - G)), with G the mean of p.
    """

    @dataclass
    class Config(Averaged.Config):
        """`block_size` is the mean length that the ratio loss aims for; `min_size` is not read."""

        router: RouterLearning = field(default_factory=RouterLearning)

    causality = "token"
    prefix_consistent = True
    needs_features = True
    divisible = False

    def __init__(self, config: Config, hidden_size: int):
        super().__init__(config, hidden_size)
        self.scope = "model" if config.router.group_size is None else "layer"
        self.query = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.key = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.reset_parameters()

    @classmethod
    def problems(cls, config: Config, design: Any) -> Iterator[Problem]:
        yield from super().problems(config, design)
        if config.router.loss_weight < 0:
            yield Problem("router.loss_weight", f"{config.router.loss_weight} is negative; use 0 or more")
        if config.router.group_size is not None and config.router.group_size < 1:
            yield Problem("router.group_size", f"{config.router.group_size} is not positive; null shares one router")
        if not design.branches.compression.enabled:
            yield Problem(
                "kind",
                "'router' learns only through the compression branch, which is off; enable it or use another kind",
            )

    @classmethod
    def group(cls, config: Config, layer: int) -> int:
        return 0 if config.router.group_size is None else layer // config.router.group_size

    def reset_parameters(self) -> None:
        nn.init.eye_(self.query)
        nn.init.eye_(self.key)

    def forward(self, context: Context, features: Tensor | None = None, layer: int = 0) -> Partition:
        assert features is not None
        first = place_in_run(context.segment) == 0
        p = self.probability(features, first)
        opened = (p >= 0.5) | first
        starts = place_in_run(opened.cumsum(0)) % self.longest(self.config) == 0
        confidence = torch.where(opened, p, 1 - p)[starts]
        inner = (~first).to(p.dtype)
        count = inner.sum().clamp(min=1)
        rate, mean_p = ((x * inner).sum() / count for x in (starts.to(p.dtype), p))
        statistics = {
            "router/boundary_rate": rate.detach(),
            "router/mean_probability": mean_p.detach(),
            "router/forced_share": (starts & ~opened).sum() / starts.sum().clamp(min=1),
        }
        return partition_from_starts(
            starts,
            context.cu_seqlens,
            self.causality,
            block_end=next_start(starts, context.segment),
            confidence=confidence,
            auxiliary_loss=self.config.router.loss_weight * ratio_loss(rate, mean_p, self.config.block_size),
            statistics=statistics,
        )

    def probability(self, features: Tensor, first: Tensor) -> Tensor:
        """[T] float32 or wider: how likely each token opens a block; 1 where `first` [T] says it must."""
        query, key = (features @ weight.to(features.dtype).T for weight in (self.query, self.key))
        wide = torch.promote_types(query.dtype, torch.float32)
        cosine = F.cosine_similarity(query[1:].to(wide), key[:-1].to(wide), dim=-1)
        p = F.pad((1 - cosine) / 2, (1, 0), value=1.0)
        return torch.where(first, torch.ones_like(p), p) if len(features) else features.new_zeros(0, dtype=wide)


def ratio_loss(rate: Tensor, mean_p: Tensor, size: int) -> Tensor:
    """Least, and 1, where openings and their mean probability are both 1 / size (H-Net's ratio loss)."""
    return size / max(size - 1, 1) * ((size - 1) * rate * mean_p + (1 - rate) * (1 - mean_p))
