"""A scorer with parameters and a loss: a small index query per group, trained towards the compression probabilities."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nsa_lab.attention.choice import Scorer
from nsa_lab.attention.dims import HeadDims
from nsa_lab.attention.inputs import BranchInputs
from nsa_lab.attention.select.compression import compression_scores


class IndexScorer(Scorer):
    """Scores are products of an index query, read off x, with the pooled keys, which get no gradient from them."""

    @dataclass
    class Config:
        """Weight of the cross-entropy to the compression probabilities."""

        index_loss_weight: float = 0.1

    needs_x = True

    def __init__(self, config: Config, dims: HeadDims):
        super().__init__(config, dims)
        self.query = nn.Linear(dims.hidden_size, dims.num_kv_heads * dims.head_dim, bias=False)

    def forward(
        self, x: Tensor | None, q: Tensor, pooled_k: Tensor, visible: Tensor, block_bias: Tensor | None, scale: float
    ) -> Tensor:
        assert x is not None
        index = self.query(x.to(self.query.weight.dtype)).unflatten(-1, (q.shape[2], q.shape[4]))
        return torch.einsum("ucgd,umgd->ucgm", index, pooled_k.detach().to(index.dtype)) * scale

    def loss(self, inputs: BranchInputs) -> Tensor | None:
        assert inputs.pooled_k is not None
        context, partition = inputs.context, inputs.partition
        heads = inputs.q.detach().unflatten(1, (inputs.k.shape[1], -1))[None]
        pooled, ends = inputs.pooled_k.detach()[None], partition.block_end
        visible = (ends <= context.query_index[:, None]) & (ends >= context.sample_start[:, None])
        scores = self(inputs.x.detach()[None], heads, pooled, visible[None], None, inputs.scale)
        teacher: Any = compression_scores(heads, pooled, visible[None], inputs.block_bias, inputs.scale)
        alive = visible.any(1)
        student = scores.masked_fill(~visible[None, :, None], -1e9).log_softmax(-1)
        cross = -(teacher / teacher.sum(-1, keepdim=True).clamp(min=1e-9) * student).sum(-1)[0, alive]
        return self.config.index_loss_weight * cross.mean() if len(cross) else None
