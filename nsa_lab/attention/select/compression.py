"""The compression branch's own probabilities as scores (NSA, equations 9 and 10; VideoNSA, section 2)."""

import torch
from torch import Tensor

from nsa_lab.attention.choice import Scorer


class CompressionScorer(Scorer):
    """The softmax over the pooled keys of the blocks a query sees, summed over the group's heads."""

    def plain(self, x: Tensor | None, q: Tensor, pooled_k: Tensor, block_bias: Tensor | None, scale: float) -> Tensor:
        """See Scorer.plain."""
        logits = q @ pooled_k.permute(1, 2, 0) * scale
        return (logits if block_bias is None else logits + block_bias).softmax(-1).sum(1)

    def forward(
        self, x: Tensor | None, q: Tensor, pooled_k: Tensor, visible: Tensor, block_bias: Tensor | None, scale: float
    ) -> Tensor:
        """See Scorer.forward; float32 or wider."""
        return compression_scores(q, pooled_k, visible, block_bias, scale)


def compression_scores(q: Tensor, pooled_k: Tensor, visible: Tensor, block_bias: Tensor | None, scale: float) -> Tensor:
    """CompressionScorer.forward; float32 or wider."""
    logits = torch.einsum("ucghd,umgd->ucghm", q * scale, pooled_k)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if block_bias is not None:
        logits = logits + block_bias[:, None, None, None]
    hidden = ~visible[:, :, None]
    share = logits.masked_fill_(hidden[:, :, :, None], torch.finfo(logits.dtype).min).softmax(-1)
    return share.sum(3).masked_fill_(hidden, 0)
