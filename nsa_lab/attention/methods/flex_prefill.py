"""FlexPrefill (arXiv 2502.20766): each head chooses blocks query by query, or columns and diagonals for all queries."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nsa_lab.attention.methods.last_rows import answer_notice, best, last_rows_mass, scored_by_last_rows
from nsa_lab.attention.methods.pairs import Choice, choice_of_blocks
from nsa_lab.attention.methods.products import wide
from nsa_lab.attention.methods.training_free import TrainingFree
from nsa_lab.errors import Problem


@dataclass
class Flexible:
    """Blocks of `block_size` tokens; `gamma` is the share of mass to be read; heads whose pooled scores are nearer to
    the true ones than `tau` choose query by query. min_budget: so many tokens at least, as columns and as diagonals;
    null for one block, which VideoNSA's release has. The method's own examples have 512 and 1024.
    """

    block_size: int = 128
    gamma: float = 0.9
    tau: float = 0.1
    min_budget: int | None = None


class FlexPrefill(TrainingFree):
    """The last `block_size` rows are evidence: what they attend to by key, by distance, and by block with pooled keys.

    Where the square root of the Jensen-Shannon divergence of true and pooled is below `tau`, a head is query-aware: of
    all pairs of blocks it reads the highest pooled scores within `gamma` of the whole, beside columns and diagonals of
    the least budget. Any other head reads the columns and diagonals that hold `gamma` of the evidence. The first column
    and the own block are always read, and a sample of two blocks or of the least budget densely
    (github.com/ByteDance-Seed/FlexPrefill, Apache-2.0). Reproduced: that code's choice for each query head, the pair
    that would pass `gamma` left out, and diagonals cut into blocks from the farthest. Not: its fixed 128 in the count
    of columns, which is `block_size` here, and `max_budget`, which no published setting has. Every row's keys depend on
    the end of the sample.
    """

    reads = "columns and diagonals, or blocks for each query, up to a share of the attention mass"

    @dataclass
    class Config:
        flex_prefill: Flexible = field(default_factory=Flexible)

    @classmethod
    def problems(cls, config: Any, design: Any) -> Iterator[Problem]:
        yield from super().problems(config, design)
        own = config.flex_prefill
        if own.block_size < 1:
            yield Problem("flex_prefill.block_size", f"{own.block_size} is not positive")
        if not 0 <= own.gamma <= 1:
            yield Problem("flex_prefill.gamma", f"{own.gamma} is outside 0 to 1")
        if own.tau < 0:
            yield Problem("flex_prefill.tau", f"{own.tau} is negative; use 0 for no query-aware head")
        if own.min_budget is not None and own.min_budget < 1:
            yield Problem("flex_prefill.min_budget", f"{own.min_budget} is not positive; use null for one block")

    @classmethod
    def notices(cls, config: Any, clip: str, tokens: int) -> Iterator[str]:
        own = config.flex_prefill
        yield from answer_notice(own.block_size, clip)
        if tokens <= (whole := read_whole(own)):
            yield f"method=flex_prefill is dense on samples of up to {whole} tokens; a {clip} clip has {tokens}"

    def choose(self, q: Tensor, k: Tensor) -> Choice:
        own, count = self.config.flex_prefill, len(q)
        if count <= read_whole(own):
            return choice_of_blocks(torch.ones(q.shape[1], 1, 1, dtype=torch.bool, device=q.device), count, 0.0)
        size, blocks = own.block_size, -(-count // own.block_size)
        vertical, slash = (mass / size for mass in last_rows_mass(q, k, size, self.scale))
        numbers = [_blocks_for(mass, own.gamma, size).clamp(least_blocks(own), blocks) for mass in (vertical, slash)]
        columns, diagonals = _pooled(vertical, size), _pooled(slash.flip(1), size).flip(1)
        mean_q, mean_k = (_block_means(x, size) for x in (q, k))
        mean_k = mean_k.repeat_interleave(len(mean_q) // len(mean_k), 0)
        guess = (mean_k @ q[-size:].to(mean_k.dtype).mean(0)[..., None])[..., 0] * self.scale
        aware = divergence(guess.softmax(-1), columns) < own.tau
        number_v, number_s = (number.masked_fill(aware, least_blocks(own)) for number in numbers)
        columns[:, 0] = diagonals[:, 0] = torch.inf
        table = _table(best(columns, number_v), best(diagonals, number_s))
        table[aware] |= _within(mean_q[aware] @ mean_k[aware].transpose(1, 2) * self.scale, own.gamma)
        pairs = blocks + aware.double().mean().item() * blocks * (blocks + 1) / 2
        return choice_of_blocks(table, size, scored_by_last_rows(count, size) + pairs / count)


def least_blocks(own: Flexible) -> int:
    """Columns, and diagonals, of blocks that every head reads at least."""
    return -(-(own.min_budget or 1) // own.block_size)


def read_whole(own: Flexible) -> int:
    """Samples of up to so many tokens are read densely."""
    return max(2, least_blocks(own)) * own.block_size


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Square root of the Jensen-Shannon divergence of two distributions [..., n], in nats: [...]."""
    middle = ((p + q) / 2).clamp(min=torch.finfo(p.dtype).tiny)
    sides = (torch.special.xlogy(x, x / middle).sum(-1) for x in (p, q))
    return (sum(sides) / 2).clamp(min=0).sqrt()


def _blocks_for(mass: Tensor, gamma: float, size: int) -> Tensor:
    """[H] int64: blocks that as many tokens fill as hold `gamma` of mass [H, T], and one more."""
    reached = mass.sort(dim=-1, descending=True).values.cumsum(-1)
    return ((reached <= gamma).sum(-1) + 1) // size + 1


def _pooled(mass: Tensor, size: int) -> Tensor:
    """[H, N]: the sums of mass [H, T] over blocks."""
    return F.pad(mass, (0, -mass.shape[1] % size)).unflatten(1, (-1, size)).sum(2)


def _block_means(x: Tensor, size: int) -> Tensor:
    """[H, N, D]: the means of x [T, H, D] over blocks, the last one's over what it has."""
    count = len(x)
    padded = F.pad(x.to(wide(x.dtype)), (0, 0, 0, 0, 0, -count % size)).unflatten(0, (-1, size))
    held = (count - torch.arange(0, count, size, device=x.device)).clamp(max=size)
    return padded.sum(1).transpose(0, 1) / held[:, None]


def _table(columns: Tensor, diagonals: Tensor) -> Tensor:
    """[H, N, N] bool: the pairs of blocks in `columns` [H, N] or `diagonals` [H, N]."""
    place = torch.arange(columns.shape[1], device=columns.device)
    distance = place[:, None] - place
    return columns[:, None] | (diagonals[:, distance.clamp(min=0)] & (distance >= 0))


def _within(logits: Tensor, gamma: float) -> Tensor:
    """[H, N, N] bool: the pairs of blocks that are highest after softmax of logits [H, N, N], up to gamma * N."""
    blocks = logits.shape[1]
    future = torch.ones(blocks, blocks, dtype=torch.bool, device=logits.device).triu(1)
    scores = logits.masked_fill(future, -torch.inf).softmax(-1).flatten(1)
    mass, order = scores.sort(dim=-1, descending=True, stable=True)
    wanted = mass.cumsum(-1) <= gamma * blocks
    return torch.zeros_like(wanted).scatter(1, order, wanted).unflatten(1, (blocks, blocks))
