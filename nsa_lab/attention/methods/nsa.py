"""VideoNSA (arXiv 2510.02295, section 2): video rows through gated sparse branches, text rows densely."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any, Literal

import torch
from torch import Tensor

from nsa_lab.attention.branches import BRANCHES, BranchesConfig
from nsa_lab.attention.budget import Cost
from nsa_lab.attention.compressors import CompressorConfig
from nsa_lab.attention.dims import HeadDims
from nsa_lab.attention.gates import GateConfig
from nsa_lab.attention.methods.base import Method, Plan
from nsa_lab.attention.sparse import GatedBranches
from nsa_lab.attention.trace import Trace
from nsa_lab.errors import Problem
from nsa_lab.partition import PartitionConfig
from nsa_lab.plugin import at, problems_of, switched_on


class NSA(Method):
    divisible = True

    @dataclass
    class Config:
        """The sparse branches see the sample's video tokens (`context=video`), or its text too (`all`)."""

        context: Literal["video", "all"] = "video"
        partition: PartitionConfig = field(default_factory=PartitionConfig)
        compressor: CompressorConfig = field(default_factory=CompressorConfig)
        branches: BranchesConfig = field(default_factory=BranchesConfig)
        gate: GateConfig = field(default_factory=GateConfig)

    def __init__(self, config: Config, design: Any, dims: HeadDims, layer: int):
        super().__init__(config, design, dims, layer)
        self.sparse = GatedBranches(config, design.backend, dims, layer)
        self.query_tile = math.lcm(
            *(BRANCHES[name].query_tile(own) for name, own in switched_on(config.branches).items())
        )

    @classmethod
    def problems(cls, config: Config, design: Any) -> Iterator[Problem]:
        for section in ("partition", "compressor", "gate"):
            yield from at(section, problems_of(getattr(config, section), "kind", design))
        if not switched_on(config.branches):
            yield Problem("branches", "all branches are off; enable one, or set attention.method=dense")
        for name, branch in switched_on(config.branches).items():
            yield from at(f"branches.{name}", BRANCHES[name].problems(branch, design))

    @classmethod
    def attended(cls, config: Config) -> int:
        return sum(BRANCHES[name].attended(own, config) for name, own in switched_on(config.branches).items())

    @classmethod
    def notices(cls, config: Config, clip: str, tokens: int) -> Iterator[str]:
        for name, own in switched_on(config.branches).items():
            yield from BRANCHES[name].notices(own, config, clip, tokens)

    def prefill(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, plan: Plan) -> Tensor:
        text = self.text_rows(q, k, v, plan)
        context, rows = plan.sparse(self.config.context), plan.layout.video_rows
        video = self.sparse(
            x[rows],
            q[rows],
            k[context.token_index],
            v[context.token_index],
            context,
            plan.partition(self.layer, x),
            plan.trace,
        )
        return torch.cat([text, video])[plan.time_order]

    def cost(self, trace: Trace, lengths: Tensor) -> Cost:
        """The sum over the branches, as counted in the forward (the trace must want `cost` and `choice`)."""
        return reduce(add, trace.found[self.layer, "cost"].values())
