"""XAttention (arXiv 2503.16428): blocks chosen by sums along antidiagonals of the attention matrix."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nsa_lab.attention.groups import rows_that_fit
from nsa_lab.attention.methods.pairs import Choice, choice_of_blocks
from nsa_lab.attention.methods.products import wide, wide_product
from nsa_lab.attention.methods.training_free import TrainingFree
from nsa_lab.errors import Problem


@dataclass
class Antidiagonals:
    """Blocks of `block_size` tokens; `stride` neighbours share a score; `threshold` is the share of mass to be read."""

    block_size: int = 128
    stride: int = 16
    threshold: float = 0.9


class XAttention(TrainingFree):
    """Each row of blocks reads its first and own block, and the best others up to a share of the estimated mass.

    Tokens in groups of S = `stride`: a pair of groups scores the mean of q.k along its antidiagonal; causal softmax
    over groups, summed into blocks. Besides the forced two, blocks come by falling mass while the mass so far is below
    the threshold (github.com/mit-han-lab/x-attention, `xattn_estimate` and
    `find_blocks_chunked`; S = 16 and 0.9 are its settings for video, and VideoNSA's). Reproduced: the estimate and the
    choice, for each query head. Not: thresholds tuned by head, which exist for Llama alone, and `keep_sink`, which sets
    a row for a column there. A last group that is not full counts what it has, where the released code depends on its
    chunks. Rows of a block share a choice, so that a row's keys depend on rows after it in its own block.
    """

    reads = "its first and own block, and others up to a share of the attention mass"

    @dataclass
    class Config:
        x_attention: Antidiagonals = field(default_factory=Antidiagonals)

    @classmethod
    def problems(cls, config: Any, design: Any) -> Iterator[Problem]:
        yield from super().problems(config, design)
        own = config.x_attention
        if own.stride < 1 or own.block_size < 1 or own.block_size % own.stride:
            reason = (
                f"{own.block_size} is no multiple of stride={own.stride}; use one, such as {8 * max(1, own.stride)}"
            )
            yield Problem("x_attention.block_size", reason)
        if not 0 <= own.threshold <= 1:
            yield Problem("x_attention.threshold", f"{own.threshold} is outside 0 to 1")

    @classmethod
    def notices(cls, config: Any, clip: str, tokens: int) -> Iterator[str]:
        if tokens <= 2 * config.x_attention.block_size:
            yield (
                f"attention.x_attention.block_size={config.x_attention.block_size}: two blocks, which every row reads,"
                f" hold all {tokens} tokens of a {clip} clip"
            )

    def choose(self, q: Tensor, k: Tensor) -> Choice:
        own = self.config.x_attention
        mass = antidiagonal_mass(q, k, own.stride, own.block_size, self.scale)
        table = blocks_up_to(mass, own.threshold)
        groups = -(-len(q) // own.stride)
        scored = groups * (groups + 1) / 2 * own.stride / max(1, len(q))
        return choice_of_blocks(table, own.block_size, scored)


def antidiagonal_mass(q: Tensor, k: Tensor, stride: int, block_size: int, scale: float) -> Tensor:
    """[H, N, N]: the estimated attention of each row of blocks to each block, of q [T, H, D] and k [T, G, D]."""
    groups, per_block = -(-len(q) // stride), block_size // stride
    blocks = -(-groups // per_block)
    repeat = q.shape[1] // k.shape[1]
    rows = _grouped(q, groups, stride).flip(2).flatten(2)
    keys = _grouped(k, groups, stride).flatten(2).repeat_interleave(repeat, 0)
    mass = torch.zeros(q.shape[1], blocks, blocks, dtype=wide(q.dtype), device=q.device)
    place = torch.arange(groups, device=q.device)
    for some in place.split(rows_that_fit(8 * groups * q.shape[1])):
        past = int(some[-1]) + 1
        logits = wide_product(rows[:, some], keys[:, :past].transpose(1, 2)) * (scale / stride)
        weights = logits.masked_fill(place[:past] > some[:, None], -torch.inf).softmax(-1)
        summed = F.pad(weights, (0, blocks * per_block - past)).unflatten(2, (blocks, per_block)).sum(3)
        mass.index_add_(1, some // per_block, summed)
    return mass


def blocks_up_to(mass: Tensor, threshold: float) -> Tensor:
    """[H, N, N] bool: the first and the own block, and the others by falling mass [H, N, N] up to `threshold` of it."""
    place = torch.arange(mass.shape[1], device=mass.device)
    forced = (place == 0) | (place == place[:, None])
    others = mass.masked_fill(forced, 0)
    best, order = others.sort(dim=-1, descending=True, stable=True)
    before = (mass - others).sum(-1, keepdim=True) + best.cumsum(-1) - best
    wanted = before < threshold * mass.sum(-1, keepdim=True)
    return forced | torch.zeros_like(wanted).scatter(-1, order, wanted)


def _grouped(x: Tensor, groups: int, stride: int) -> Tensor:
    """x [T, H, D] to [H, groups, stride, D], zeros at the end of the last group."""
    padded = F.pad(x, (0, 0, 0, 0, 0, groups * stride - len(x)))
    return padded.unflatten(0, (groups, stride)).permute(2, 0, 1, 3)
