"""The compression branch: attention over one pooled key and value per closed block (NSA, section 3.3.1)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nsa_lab.attention.branches.base import Branch, mean, queries_from
from nsa_lab.attention.budget import Cost
from nsa_lab.attention.inputs import BranchInputs


class CompressionBranch(Branch):
    @dataclass
    class Config(Branch.Config):
        """`log_length_bias` adds log n of a block of n tokens to its logit."""

        enabled: bool = True
        log_length_bias: bool = False

    needs_pooling = True

    def forward(self, inputs: BranchInputs) -> Tensor:
        assert inputs.pooled_k is not None and inputs.pooled_v is not None
        return inputs.ops.compression(
            inputs.q,
            inputs.pooled_k,
            inputs.pooled_v,
            inputs.context,
            inputs.partition,
            scale=inputs.scale,
            block_bias=inputs.block_bias,
        )

    def cost(self, inputs: BranchInputs) -> Cost:
        ends, context = inputs.partition.block_end.sort().values, inputs.context
        closed = torch.searchsorted(ends, context.query_index, right=True)
        return Cost(pooled=mean(closed - torch.searchsorted(ends, context.sample_start, right=False)))

    def readers(self, inputs: BranchInputs) -> Tensor:
        return queries_from(inputs.context, inputs.partition.block_end)
