"""The compression branch: attention over one pooled key and value per closed block (NSA, section 3.3.1)."""

import torch
from torch import Tensor

from nsa_lab.attention.branches.base import Branch, BranchInputs
from nsa_lab.config.schema import CompressionConfig
from nsa_lab.partition import Context, Partition


class CompressionBranch(Branch):
    needs_pooling = True

    def __init__(self, config: CompressionConfig):
        super().__init__()

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

    def keys_seen(self, context: Context, partition: Partition, notes: dict[str, Tensor]) -> Tensor:
        ends = partition.block_end.sort().values
        closed = torch.searchsorted(ends, context.query_index, right=True)
        closed_before_sample = torch.searchsorted(ends, context.sample_start, right=False)
        return (closed - closed_before_sample).float()[:, None]
