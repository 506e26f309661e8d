"""Qwen2.5-VL's vision attention with windows of one length side by side: one call, and not one per window."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen


class WindowedVisionAttention(qwen.Qwen2_5_VLVisionAttention):
    """The same weights and the same result. transformers' SDPA path calls attention once per window, which for
    small frames costs more than everything else; windows of unequal length, and flash attention, go that way still.
    """

    def forward(
        self,
        hidden_states: Tensor,
        cu_seqlens: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """hidden_states [P, hidden], P patches in windows bounded by cu_seqlens; [P, hidden]."""
        lengths = cu_seqlens.diff()
        if self.config._attn_implementation != "sdpa" or len(lengths) == 0 or bool((lengths != lengths[0]).any()):
            return super().forward(hidden_states, cu_seqlens, position_embeddings=position_embeddings, **kwargs)
        assert position_embeddings is not None
        q, k, v = self.qkv(hidden_states).unflatten(1, (3, self.num_heads, -1)).unbind(1)
        q, k = qwen.apply_rotary_pos_emb_vision(q, k, *position_embeddings)
        q, k, v = (x.unflatten(0, (len(lengths), -1)).transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, scale=self.scaling)
        return self.proj(out.transpose(1, 2).flatten(0, 1).flatten(1))


def batch_windows(visual: Any) -> None:
    """Give every block of a vision tower WindowedVisionAttention, uninitialised."""
    for block in visual.blocks:
        block.attn = WindowedVisionAttention(visual.config)
