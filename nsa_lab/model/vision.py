"""Qwen2.5-VL's vision tower, the same weights and result with fewer and larger operations."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

from nsa_lab.layout import moved
from nsa_lab.model.rotary import PreciseVisionRotaryEmbedding


class WindowedVisionAttention(qwen.Qwen2_5_VLVisionAttention):
    """The same weights and the same result. transformers' SDPA path calls attention once per window, which for
    small frames costs more than everything else; windows of unequal length, and flash attention, go that way still.
    """

    def forward(
        self,
        hidden_states: Tensor,
        cu_seqlens: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        equal_windows: tuple[int, ...] = (),
        **kwargs: Any,
    ) -> Tensor:
        """hidden_states [P, hidden], P patches in windows bounded by cu_seqlens; [P, hidden].

        equal_windows: the numbers of windows whose lengths are known to be equal.
        """
        lengths = cu_seqlens.diff()
        if self.config._attn_implementation != "sdpa" or not (len(lengths) in equal_windows or _equal(lengths)):
            return super().forward(hidden_states, cu_seqlens, position_embeddings=position_embeddings, **kwargs)
        assert position_embeddings is not None
        q, k, v = self.qkv(hidden_states).unflatten(1, (3, self.num_heads, -1)).unbind(1)
        q, k = self._rotate(q, k, position_embeddings)
        q, k, v = (x.unflatten(0, (len(lengths), -1)).transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, scale=self.scaling)
        return self.proj(out.transpose(1, 2).flatten(0, 1).flatten(1))

    def _rotate(self, q: Tensor, k: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return qwen.apply_rotary_pos_emb_vision(q, k, *rope)


def _equal(lengths: Tensor) -> bool:
    return len(lengths) > 0 and not bool((lengths != lengths[0]).any())


def vision_inputs(visual: Any, grids: Tensor, device: torch.device) -> dict[str, Any]:
    """What the tower reads off its grids, made on the host: grids [V, 3] in tokens on the CPU, the rest on `device`."""
    merge = visual.spatial_merge_size
    grid_thw = grids * grids.new_tensor([1, merge, merge])
    index, windows = get_vision_window_index(grid_thw, merge, visual.window_size, visual.patch_size)
    whole = get_vision_cu_seqlens(grid_thw)
    tensors = {
        "grid_thw": grid_thw,
        "position_ids": get_vision_position_ids(grid_thw, merge),
        "cu_seqlens": whole,
        "window_index": index,
        "cu_window_seqlens": windows,
    }
    equal = tuple(len(bounds) - 1 for bounds in (whole, windows) if _equal(bounds.diff()))
    return {name: moved(x, device) for name, x in tensors.items()} | {"equal_windows": equal}


class LinearPatchEmbed(qwen.Qwen2_5_VisionPatchEmbed):
    """The convolution's windows do not overlap: it is one matrix product, four times as fast on a CPU as Conv3d."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """hidden_states [P, C * frames * pixels * pixels], P patches; [P, hidden]."""
        weight = self.proj.weight.flatten(1)
        return F.linear(hidden_states.to(weight.dtype), weight)


def speed_up(visual: Any) -> None:
    """Give a vision tower LinearPatchEmbed, precise frequencies and, uninitialised, WindowedVisionAttention."""
    visual.rotary_pos_emb.__class__ = PreciseVisionRotaryEmbedding
    visual.patch_embed.__class__ = LinearPatchEmbed  # a new one would draw start values, and shift all that come after
    for block in visual.blocks:
        block.attn = WindowedVisionAttention(visual.config)
