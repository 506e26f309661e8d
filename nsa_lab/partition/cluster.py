"""Blocks of like tokens: content clusters inside stretches of video that are closed before they are used."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from nsa_lab.errors import Problem
from nsa_lab.partition.base import Context, Partition, Partitioner, partition_from_block_id
from nsa_lab.partition.segments import place_in_run, run_lengths

STEPS = 4
"""Of power iteration, towards the direction in which a group of tokens differs most."""


@dataclass
class ClusterSegments:
    """How many clusters share one closed stretch of `blocks` x `block_size` tokens; a power of two."""

    blocks: int = 4


class Cluster(Partitioner):
    """Stretches of `cluster.blocks` x `block_size` tokens, each split by content into clusters of `block_size`.

    A stretch is halved again and again along its principal direction, sorted and cut in the middle, so that clusters
    are equal in size; only the last stretch of a segment can be shorter. Which tokens a cluster holds is known when its
    stretch is over, so its blocks can be pooled and selected from the stretch's last token on; before that, only the
    window reaches into it.
    """

    @dataclass
    class Config(Partitioner.Config):
        """`block_size` is the size of a cluster."""

        cluster: ClusterSegments = field(default_factory=ClusterSegments)

    causality = "token"
    prefix_consistent = True
    needs_features = True

    @classmethod
    def problems(cls, config: Config, design: object) -> Iterator[Problem]:
        yield from super().problems(config, design)
        blocks = config.cluster.blocks
        if blocks < 2 or blocks & (blocks - 1):
            yield Problem("cluster.blocks", f"{blocks} is not a power of two from 2 on; a stretch is halved")

    @torch.no_grad()
    def forward(self, context: Context, features: Tensor | None = None, layer: int = 0) -> Partition:
        assert features is not None
        size = self.config.cluster.blocks * self.config.block_size
        first = place_in_run(context.segment) % size == 0
        stretch = first.cumsum(0) - 1
        start, length = first.nonzero(), run_lengths(stretch)[first]
        last = (start[:, 0] + length - 1)[stretch]
        keys = start + torch.arange(size, device=start.device)
        keys = keys.masked_fill(keys >= (start + length[:, None]), -1)
        order = split(keys, features.float(), self.config.cluster.blocks)
        cluster = torch.arange(order.shape[0], device=order.device)[:, None].expand_as(order)
        numbers = torch.zeros_like(context.segment)
        numbers[order[order >= 0]] = cluster[order >= 0]
        block_id = numbers.unique(return_inverse=True)[1]
        count = int(block_id.max()) + 1 if len(block_id) else 0
        seen = last.new_zeros(count).scatter(0, block_id, last)
        return partition_from_block_id(
            block_id, context.cu_seqlens, self.causality, block_start=seen, block_end=seen.clone()
        )


def split(keys: Tensor, features: Tensor, parts: int) -> Tensor:
    """Each row of keys [M, n], -1 being nothing, as `parts` rows of like keys: [M * parts, n / parts]."""
    while parts > 1:
        real = keys >= 0
        x = F.normalize(features[keys.clamp(min=0)], dim=-1)
        x = (x - _row_mean(x, real)) * real[..., None]
        # Sums over the last axes, not products of matrices: the result of a row must not depend on the other rows.
        at = x.square().sum(-1).argmax(1)
        direction = x[torch.arange(len(x), device=x.device), at]
        for _ in range(STEPS):
            along = (x * direction[:, None]).sum(-1)
            direction = F.normalize((x * along[..., None]).sum(1), dim=-1)
        along = (x * direction[:, None]).sum(-1).masked_fill(~real, torch.inf)
        keys = keys.gather(1, along.sort(dim=1, stable=True).indices).reshape(2 * len(keys), keys.shape[1] // 2)
        parts //= 2
    return keys


def _row_mean(x: Tensor, real: Tensor) -> Tensor:
    return (x * real[..., None]).sum(1, keepdim=True) / real.sum(1)[:, None, None].clamp(min=1)
