"""A decoder layer's attention: its method in the prefill, dense attention to the cache afterwards."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

from nsa_lab.attention.dims import HeadDims
from nsa_lab.attention.methods import Method
from nsa_lab.baselines import AskedHeads
from nsa_lab.config import layer_attention
from nsa_lab.model.cache import VideoCache
from nsa_lab.model.chunks import Chunk
from nsa_lab.model.config import get_design
from nsa_lab.model.plan import AttentionPlan, Rope
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
        position_embeddings: Rope,
        past_key_values: Any = None,
        plan: AttentionPlan | Chunk | None = None,
        padding: Tensor | None = None,
        past_length: int = 0,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """With a plan a prefill of own rows, with a chunk that of its rows, [n, hidden]; without, new tokens
        [B, n, hidden] after a cache."""
        if isinstance(plan, Chunk):
            q = self.queries(hidden_states, position_embeddings)
            out = self.method.prefill(hidden_states, q, *plan.known, plan)
            return self.o_proj(out.flatten(-2)), None
        q, k, v = (self._heads(project, hidden_states) for project in (self.q_proj, self.k_proj, self.v_proj))
        q, k = self._rotate(q, k, position_embeddings)
        if plan is None:
            out = self._decode(q, k, v, past_key_values, padding, past_length)
        else:
            if past_key_values is not None:
                self.fill(past_key_values, k, v, plan)
            if self.layer_idx in plan.watched:
                self.show(q[plan.asked], k, plan)
            if plan.shared:
                k, v = plan.all_rows(torch.cat([k, v], 1)).chunk(2, 1)
            out = self.method.prefill(hidden_states, q, k, v, plan)
        return self.o_proj(out.flatten(-2)), None

    def queries(self, x: Tensor, rope: Rope) -> Tensor:
        """[n, H, D], rotated, of rows x [n, hidden]."""
        q = self._heads(self.q_proj, x)
        return self._rotate(q, q[:, :0], rope)[0]

    def keys(self, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
        """Keys, rotated, and values [n, G, D] of rows x [n, hidden]."""
        k, v = (self._heads(project, x) for project in (self.k_proj, self.v_proj))
        return self._rotate(k[:, :0], k, rope)[1], v

    def _heads(self, project: nn.Module, x: Tensor) -> Tensor:
        return project(x).view(*x.shape[:-1], -1, self.head_dim)

    def show(self, q: Tensor, k: Tensor, plan: AttentionPlan) -> None:
        """Tell the reducer the queries [S, H, D] of the questions' ends and the keys [T, G, D] of all rows."""
        plan.heads[self.layer_idx] = AskedHeads(q.detach(), k.detach(), self.design.text_window)

    def _rotate(self, q: Tensor, k: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
        return qwen.apply_rotary_pos_emb(q, k, *rope, unsqueeze_dim=-2)

    def fill(self, cache: Any, k: Tensor, v: Tensor, plan: AttentionPlan) -> None:
        """Keep a prefill's keys and values [T, G, D] in `cache`."""
        if isinstance(cache, VideoCache):
            cache.fill(self.layer_idx, k, v, plan)
        elif not plan.reduced:
            cache.update(*(plan.unpack(x).transpose(1, 2) for x in (k, v)), self.layer_idx)
        else:
            raise ValueError(
                f"a {type(cache).__name__} holds the same tokens in every layer; where a reducer drops some, pass "
                "nsa_lab.model.cache.VideoCache() or no cache"
            )

    def _decode(self, q: Tensor, k: Tensor, v: Tensor, cache: Any, padding: Tensor | None, past: int) -> Tensor:
        """Causal attention of new tokens q [B, n, H, D], k and v [B, n, G, D] to the cache and one another."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        if isinstance(cache, VideoCache):
            past, padding = k.shape[2] - q.shape[2], cache.real_keys(self.layer_idx, k.shape[2], padding)
        place = torch.arange(k.shape[2], device=q.device)
        own = past + torch.arange(q.shape[2], device=q.device)[:, None]
        seen = place <= own
        if self.design.text_window is not None:
            seen = seen & (place > own - self.design.text_window)
        if padding is not None:
            real = F.pad(padding.bool(), (0, k.shape[2] - padding.shape[1]), value=True)
            seen = seen & real[:, None, None]
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=self.scaling).transpose(1, 2)
