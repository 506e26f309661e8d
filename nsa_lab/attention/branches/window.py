"""The sliding-window branch: attention to the last tokens, the query's own included (NSA, section 3.3.3)."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nsa_lab.attention.branches.base import Branch, mean, queries_from
from nsa_lab.attention.budget import Cost
from nsa_lab.attention.inputs import BranchInputs
from nsa_lab.errors import Problem


class WindowBranch(Branch):
    @dataclass
    class Config(Branch.Config):
        """The last `size` tokens, the query's own included."""

        enabled: bool = True
        size: int = 256

    scales = {"size": "context"}

    @classmethod
    def problems(cls, config: Config, design: object) -> Iterator[Problem]:
        if config.size < 1:
            yield Problem("size", f"a window of {config.size} holds no token; use 1 or more or enabled=false")

    @classmethod
    def attended(cls, config: Config, design: object) -> int:
        return config.size

    def forward(self, inputs: BranchInputs) -> Tensor:
        size = self.config.size
        return inputs.ops.window(inputs.q, inputs.k, inputs.v, inputs.context, size=size, scale=inputs.scale)

    def cost(self, inputs: BranchInputs) -> Cost:
        seen = inputs.context.query_index - inputs.context.sample_start + 1
        return Cost(keys=mean(seen.clamp(max=self.config.size)))

    def readers(self, inputs: BranchInputs) -> Tensor:
        keys = torch.arange(len(inputs.k), device=inputs.k.device)
        return queries_from(inputs.context, keys, self.config.size)
