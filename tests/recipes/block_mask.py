"""A method: every video query attends to its own block and to the first one, by a mask over blocks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nsa_lab.attention.budget import Cost
from nsa_lab.attention.methods.base import Method, Plan
from nsa_lab.attention.trace import Trace


class BlockMask(Method):
    @dataclass
    class Config:
        """Blocks of `mask_block` video tokens, counted from the start of each sample."""

        mask_block: int = 8

    @classmethod
    def attended(cls, config: Config) -> int:
        return 2 * config.mask_block

    def prefill(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, plan: Plan) -> Tensor:
        context, rows = plan.sparse("video"), plan.layout.video_index
        key = torch.arange(len(rows), device=q.device)
        start = context.cu_seqlens[:-1].repeat_interleave(context.cu_seqlens.diff())
        block = (key - start) // self.config.mask_block
        same = start[:, None] == start
        seen = same & (key <= key[:, None]) & ((block == block[:, None]) | (block == 0))
        plan.trace.record(self.layer, "cost", {"block_mask": Cost(keys=float(seen.sum(1).float().mean()))})
        repeat = q.shape[1] // k.shape[1]
        keys, values = (t[context.token_index].repeat_interleave(repeat, 1) for t in (k, v))
        logits = torch.einsum("qhd,khd->hqk", q[rows], keys) * self.scale
        video = torch.einsum("hqk,khd->qhd", logits.masked_fill(~seen, -torch.inf).softmax(-1), values)
        return torch.cat([self.text_rows(q, k, v, plan), video])[plan.time_order]

    def cost(self, trace: Trace, lengths: Tensor) -> Cost:
        return trace.found[self.layer, "cost"]["block_mask"]
