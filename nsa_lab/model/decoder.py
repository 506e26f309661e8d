"""The decoder: Qwen2.5-VL's layers around our attention, over packed rows, whole or in chunks."""

import math
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

from nsa_lab.baselines import Reducer
from nsa_lab.model.attention import VideoNSAAttention
from nsa_lab.model.cache import VideoCache
from nsa_lab.model.chunks import ChunkedPrefill
from nsa_lab.model.config import get_design
from nsa_lab.model.partitions import LayerPartitions
from nsa_lab.model.plan import AttentionPlan
from nsa_lab.model.rotary import PreciseRotaryEmbedding
from nsa_lab.plugin import build


class VideoNSATextModel(qwen.Qwen2_5_VLTextModel):
    """The decoder, with its own loop. What Qwen does not have is initialised here, where transformers looks for it."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.rotary_emb.__class__ = PreciseRotaryEmbedding
        for index, layer in enumerate(self.layers):
            layer.self_attn = VideoNSAAttention(config, index)
        designs = [layer.self_attn.design for layer in self.layers]
        self.partitions = LayerPartitions(designs, config.hidden_size)
        self.reducer: Reducer = build(get_design(config).reducer, "kind", config.hidden_size)
        for module in plugged_in(self).values():
            module.is_plugged_in = True
        self.post_init()

    @property
    def query_tile(self) -> int:
        """So many neighbouring queries of a frame must be computed together."""
        return math.lcm(*(layer.self_attn.method.query_tile for layer in self.layers))

    @torch.no_grad()
    def _init_weights(self, module: Any) -> None:
        if not getattr(module, "is_plugged_in", False):
            super()._init_weights(module)
        elif any(True for _ in module.parameters(recurse=False)):
            module.reset_parameters()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        plan: AttentionPlan | None = None,
        past_length: int = 0,
        prefill_chunk: int | None = None,
        output_hidden_states: bool = False,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """As Qwen2.5-VL's, for embeddings [B, L, hidden]: with a plan a prefill, without one new tokens after a cache.

        A prefill packs the rows before the first layer and unpacks them after the last. No L x L mask is made: the plan
        says who sees whom, and attention_mask [B, L] is padding alone. prefill_chunk: so many rows at a time.
        """
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache is None:
            use_cache = self.config.use_cache and not (self.gradient_checkpointing and self.training)
        if use_cache and past_key_values is None:
            past_key_values = VideoCache(self.config)
        ids = _three_rows(position_ids, x, past_length)
        states: list[Tensor] | None = [x] if output_hidden_states else None
        if plan is None:
            given = {"past_key_values": past_key_values, "padding": attention_mask, "past_length": past_length}
            x = self._new_tokens(x, ids, states, given)
        else:
            x = self._prefill(x, ids, states, past_key_values, plan, prefill_chunk)
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=past_key_values,
            hidden_states=None if states is None else (*states[:-1], x),
        )

    def _prefill(
        self,
        embeds: Tensor,
        ids: Tensor,
        states: list[Tensor] | None,
        cache: Any,
        plan: AttentionPlan,
        chunk: int | None,
    ) -> Tensor:
        chunked = None if chunk is None else ChunkedPrefill(self, chunk, plan)
        x = plan.pack(embeds)
        cos, sin = self.rotary_emb(x, plan.pack(ids.permute(1, 2, 0)).T[:, None])
        if isinstance(cache, VideoCache):
            cache.begin(ids, plan)
        plan.begin(self.partitions, x, (cos[0], sin[0]))
        plan.layers, plan.watched = self.layers, self.reducer.asks(len(self.layers))
        x, plan = self.reducer.after_vision(x, plan)
        for number, layer in enumerate(self.layers):
            if plan.reduced and plan.trace.wants("kept"):
                plan.trace.record(number, "kept", plan.video_lengths)
            if chunked is None:
                x = layer(x, position_embeddings=plan.rope, past_key_values=cache, plan=plan)
            else:
                x = chunked.layer(layer, x, cache, plan)
            plan.next_layer = number + 1
            x, plan = self.reducer.after_layer(number, x, plan)
            if states is not None:
                states.append(plan.unpack(x))
        return plan.unpack(self.norm(x) if chunked is None else chunked.each(self.norm, x))

    def _new_tokens(self, x: Tensor, ids: Tensor, states: list[Tensor] | None, given: dict[str, Any]) -> Tensor:
        rope = self.rotary_emb(x, ids)
        for layer in self.layers:
            x = layer(x, position_embeddings=rope, **given)
            if states is not None:
                states.append(x)
        return self.norm(x)


def _three_rows(position_ids: Tensor | None, x: Tensor, past: int) -> Tensor:
    """M-RoPE ids [3, B, L] of x [B, L, hidden]: given as [3 or 4, B, L] or [B, L], or counted on from `past`."""
    if position_ids is None:
        position_ids = torch.arange(past, past + x.shape[1], device=x.device).expand(len(x), -1)
    rows = position_ids.expand(3, *position_ids.shape) if position_ids.ndim == 2 else position_ids[-3:]
    # transformers counts them over all tokens of attention_mask, the cached ones included.
    return rows[..., -x.shape[1] :]


def is_plugged_in(name: str) -> bool:
    """Whether a module or weight of this name belongs to a method, a partitioner or the reducer."""
    return any(root in name for root in (".self_attn.method.", "partitions.", "reducer."))


def plugged_in(decoder: torch.nn.Module) -> dict[str, Any]:
    """The modules that Qwen2.5-VL does not have, by name: those of methods, partitioners and the reducer.

    Raises TypeError where one owns parameters and says nothing of their start values.
    """
    found = {name: module for name, module in decoder.named_modules() if is_plugged_in(f"{name}.")}
    for name, module in found.items():
        own = [parameter for parameter, _ in module.named_parameters(recurse=False)]
        if own and not hasattr(module, "reset_parameters"):
            raise TypeError(f"{type(module).__name__} ({name}) owns {', '.join(own)} but has no reset_parameters()")
    return found
