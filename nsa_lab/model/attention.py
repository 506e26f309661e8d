"""A decoder layer's attention: its method in the prefill, dense attention to the cache afterwards."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

from nsa_lab.attention.dims import HeadDims
from nsa_lab.attention.methods import Method
from nsa_lab.config import layer_attention
from nsa_lab.model.config import get_design
from nsa_lab.model.plan import AttentionPlan
from nsa_lab.plugin import build


class VideoNSAAttention(qwen.Qwen2_5_VLAttention):
    """Qwen2.5-VL's projections around the layer's method."""

    def __init__(self, config: Any, layer_idx: int):
        super().__init__(config, layer_idx)
        self.design = layer_attention(get_design(config), layer_idx)
        dims = HeadDims(self.hidden_size, self.num_heads, self.num_key_value_heads, self.head_dim)
        self.method: Method = build(self.design, "method", self.design, dims, layer_idx)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_plan: AttentionPlan | None = None,
        past_length: int = 0,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """hidden_states [B, L, hidden]; with a plan a prefill over the current tokens, without one a decode step."""
        split = (*hidden_states.shape[:2], -1, self.head_dim)
        q, k, v = (
            project(hidden_states).view(split).transpose(1, 2) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        assert position_embeddings is not None
        q, k = qwen.apply_rotary_pos_emb(q, k, *position_embeddings)
        cached_k, cached_v = (k, v) if past_key_values is None else past_key_values.update(k, v, self.layer_idx)
        if attention_plan is None:
            out = _decode(q, cached_k, cached_v, attention_mask, past_length, self.scaling, self.design.text_window)
        else:
            q, k, v = (attention_plan.pack(x.transpose(1, 2)) for x in (q, k, v))
            out = attention_plan.unpack(
                self.method.prefill(attention_plan.pack(hidden_states), q, k, v, attention_plan)
            )
        return self.o_proj(out.flatten(2)), None


def _decode(
    q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None, past: int, scale: float, window: int | None
) -> Tensor:
    """Causal attention of new tokens q [B, H, n, D] to the last `window` (None: all) of the cache k, v [B, G, Lk, D];
    [B, n, H, D]."""
    place = torch.arange(k.shape[2], device=q.device)
    own = past + torch.arange(q.shape[2], device=q.device)[:, None]
    seen = place <= own
    if window is not None:
        seen = seen & (place > own - window)
    if padding is not None:
        real = F.pad(padding.bool(), (0, k.shape[2] - padding.shape[1]), value=True)
        seen = seen & real[:, None, None]
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale).transpose(1, 2)
