"""A branch: attention to the first tokens of the sample."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nsa_lab.attention.branches.base import Branch, mean
from nsa_lab.attention.budget import Cost
from nsa_lab.attention.inputs import BranchInputs
from nsa_lab.errors import Problem


class SinkBranch(Branch):
    @dataclass
    class Config(Branch.Config):
        """The first `tokens` tokens of the sample, those after the query left out."""

        tokens: int = 4

    @classmethod
    def problems(cls, config: Config, design: object) -> Iterator[Problem]:
        if config.tokens < 1:
            yield Problem("tokens", f"{config.tokens} tokens are no sink; use 1 or more or enabled=false")

    @classmethod
    def attended(cls, config: Config, design: object) -> int:
        return config.tokens

    def _seen(self, inputs: BranchInputs) -> Tensor:
        start, own = inputs.context.sample_start[:, None], inputs.context.query_index[:, None]
        key = torch.arange(len(inputs.k), device=own.device)
        return (key >= start) & (key < start + self.config.tokens) & (key <= own)

    def forward(self, inputs: BranchInputs) -> Tensor:
        repeat = inputs.q.shape[1] // inputs.k.shape[1]
        k, v = (x.repeat_interleave(repeat, 1) for x in (inputs.k, inputs.v))
        logits = torch.einsum("qhd,khd->hqk", inputs.q, k) * inputs.scale
        weights = logits.masked_fill(~self._seen(inputs), -torch.inf).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, v)

    def cost(self, inputs: BranchInputs) -> Cost:
        return Cost(keys=mean(self._seen(inputs).sum(1)))
