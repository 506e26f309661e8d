"""Qwen2.5-VL's vision tower, the same weights and result with fewer and larger operations."""

from collections.abc import Callable, Collection
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

from nsa_lab.attention.groups import PIECE_BYTES, rows_that_fit
from nsa_lab.baselines import Sight
from nsa_lab.layout import moved
from nsa_lab.model.rotary import PreciseVisionRotaryEmbedding


class WindowedVisionAttention(qwen.Qwen2_5_VLVisionAttention):
    """The same weights and the same result. transformers' SDPA path calls attention once per window, which for
    small frames costs more than everything else; windows of unequal length, and flash attention, go that way still.
    """

    block = 0

    def forward(
        self,
        hidden_states: Tensor,
        cu_seqlens: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        equal_windows: tuple[int, ...] = (),
        watch: "TowerWatch | None" = None,
        **kwargs: Any,
    ) -> Tensor:
        """hidden_states [P, hidden], P patches in windows bounded by cu_seqlens; [P, hidden].

        equal_windows: the numbers of windows whose lengths are known to be equal. watch: who looks on.
        """
        if watch is not None and self.block in watch.blocks:
            self._show(watch, hidden_states, cu_seqlens, position_embeddings)
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

    @torch.no_grad()
    def _show(self, watch: "TowerWatch", x: Tensor, bounds: Tensor, rope: tuple[Tensor, Tensor] | None) -> None:
        assert rope is not None
        plain_q, plain_k, _ = self.qkv(x).unflatten(1, (3, self.num_heads, -1)).unbind(1)
        with torch.autocast(x.device.type, enabled=False):
            q, k = (y.to(torch.promote_types(y.dtype, torch.float32)) for y in self._rotate(plain_q, plain_k, rope))
            watch.see(self.block, attention_received(q, k, bounds.diff().tolist(), self.scaling), plain_k.mean(1))


def attention_received(q: Tensor, k: Tensor, lengths: list[int], scale: float) -> Tensor:
    """[P]: the attention that each patch gets from those of its frame, the mean over these and the heads.

    q and k [P, H, D], frames one after the other, of so many patches each; never more than one frame against itself.
    """
    found, begin = [q.new_zeros(0)], 0
    for length, group in groupby(length for length in lengths if length):
        end = begin + length * len(list(group))
        frames = (x[begin:end].unflatten(0, (-1, length)).transpose(1, 2) for x in (q, k))
        at_once = max(1, PIECE_BYTES // (8 * q.shape[1] * length**2))
        for some_q, some_k in zip(*(x.split(at_once) for x in frames), strict=True):
            rows = some_q.split(rows_that_fit(8 * len(some_q) * q.shape[1] * length), 2)
            weights = ((part @ some_k.transpose(2, 3) * scale).softmax(-1).sum((1, 2)) for part in rows)
            found.append((sum(weights, q.new_zeros(())) / (length * q.shape[1])).flatten())
        begin = end
    return torch.cat(found)


class TowerWatch:
    """What the tower's `blocks` say of the tokens of the videos with grids [V, 3] in tokens, by block in `seen`."""

    def __init__(self, visual: Any, grids: Tensor, blocks: Collection[int]):
        self.blocks, self.seen, self.merge = frozenset(blocks), dict[int, Sight](), visual.spatial_merge_size
        grid_thw = grids.cpu() * torch.tensor([1, self.merge, self.merge])
        self.index, _ = get_vision_window_index(grid_thw, self.merge, visual.window_size, visual.patch_size)

    def of(self, visual: Any, grid_thw: Tensor) -> "TowerWatch":
        """Who looks on in its place at some frames alone, of grids [v, 3] in patches."""
        return TowerWatch(visual, grid_thw // grid_thw.new_tensor([1, self.merge, self.merge]), self.blocks)

    def see(self, block: int, received: Tensor, keys: Tensor) -> None:
        """Keep what `block` says of the patches, in the tower's order of windows: received [P], keys [P, D]."""
        in_tokens = [x.unflatten(0, (-1, self.merge**2)).mean(1) for x in (received, keys)]
        index = self.index.to(received.device)
        self.seen[block] = Sight(*(torch.empty_like(x).index_copy(0, index, x) for x in in_tokens))


def in_chunks(
    run: Callable[..., Any],
    pixels: Tensor,
    grid_thw: Tensor,
    tokens: int,
    visual: Any,
    watch: TowerWatch | None = None,
    **kwargs: Any,
) -> BaseModelOutputWithPooling:
    """What `run`(pixels, grid_thw) makes of videos, from whole frames of at most `tokens` tokens, or one, at a time.

    The tower sees each frame (of two pictures) for itself, so that the features are the same.
    """
    features: list[Tensor] = []
    seen: list[dict[int, Sight]] = []
    grids = [_frames_at_a_time(grid, tokens * visual.spatial_merge_size**2) for grid in grid_thw.tolist()]
    parts = pixels.split([t * h * w for own in grids for t, h, w in own])
    for grid, part in zip((grid_thw.new_tensor([grid]) for own in grids for grid in own), parts, strict=True):
        own = None if watch is None else watch.of(visual, grid)
        found = run(part, grid, **kwargs | ({} if own is None else {"watch": own}))
        features.append(torch.cat(found.pooler_output))
        if own is not None:
            seen.append(own.seen)
    if watch is not None:
        watch.seen |= {block: _joined([sights[block] for sights in seen]) for block in watch.blocks}
    counts = (grid_thw.prod(1) // visual.spatial_merge_size**2).tolist()
    return BaseModelOutputWithPooling(pooler_output=torch.cat(features).split(counts))


def _frames_at_a_time(grid: list[int], patches: int) -> list[list[int]]:
    """A grid (t, h, w) in patches, cut along time into grids of at most `patches`, but one frame at least."""
    frames, height, width = grid
    most = max(1, patches // (height * width))
    return [[min(most, frames - first), height, width] for first in range(0, frames, most)]


def _joined(sights: list[Sight]) -> Sight:
    return Sight(torch.cat([sight.received for sight in sights]), torch.cat([sight.keys for sight in sights]))


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
    for number, block in enumerate(visual.blocks):
        block.attn = WindowedVisionAttention(visual.config)
        block.attn.block = number
