"""What transformers' generate() asks a model for: caches, masks and positions."""

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, Qwen2_5_VLForConditionalGeneration

from nsa_lab.model.cache import VideoCache


class Generation(Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL's generate() over our caches and positions; `model` is a VideoNSAModel."""

    @property
    def by_question(self) -> bool:
        """Whether the model has to know where a sample's question ends."""
        return bool(self.model.language_model.reducer.by_question)

    def _supports_mm_encoder_outputs(self) -> bool:
        """Whether generate() may run the tower beforehand: not where a reducer looks at it in the forward."""
        return not self.model.watched_blocks and super()._supports_mm_encoder_outputs()

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **model_kwargs: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        """As transformers', but videos that the tower has not seen yet are repeated row by row, not patch by patch."""
        pixels, grids = model_kwargs.get("pixel_values_videos"), model_kwargs.get("video_grid_thw")
        if pixels is not None and grids is not None:
            patches = (input_ids == self.config.video_token_id).sum(1) * self.config.vision_config.spatial_merge_size**2
            before = torch.searchsorted(grids.prod(1).cumsum(0), patches.cumsum(0), right=True)
            own = {
                "pixel_values_videos": _repeated(pixels, patches, expand_size),
                "video_grid_thw": _repeated(grids, before.diff(prepend=before.new_zeros(1)), expand_size),
            }
            model_kwargs |= dict.fromkeys(own)
        else:
            own = {}
        ids, expanded = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        return ids, expanded | own

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any) -> None:
        """As transformers', but its plain cache is ours, which a reducer needs, and so is where the prompt ends."""
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args)
        if self.by_question:
            ids = model_kwargs["position_ids"]
            last = torch.arange(ids.shape[-1], device=ids.device) == ids.shape[-1] - 1
            model_kwargs["answering"] = last.expand(ids.shape[-2:])
        if type(model_kwargs.get("past_key_values")) is DynamicCache:
            model_kwargs["past_key_values"] = VideoCache(self.config.get_text_config())

    def _maybe_prepare_encoder_kwargs_for_generation(
        self, inputs_tensor: Tensor, model_kwargs: dict[str, Any], model_input_name: Any, generation_config: Any
    ) -> dict[str, Any]:
        """As transformers', where the tower may run beforehand; it does so in chunks too."""
        chunk = generation_config.prefill_chunk_size
        given = model_kwargs if chunk is None else model_kwargs | {"prefill_chunk": chunk}
        found: dict[str, Any] = super()._maybe_prepare_encoder_kwargs_for_generation(
            inputs_tensor, given, model_input_name, generation_config
        )
        return {name: value for name, value in found.items() if name != "prefill_chunk"}

    def _prefill(
        self, input_ids: Tensor, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """As transformers', but prefill_chunk_size cuts a whole prompt inside the forward, its videos too."""
        cache, chunk = model_kwargs.get("past_key_values"), generation_config.prefill_chunk_size
        if chunk is not None and cache is not None and cache.get_seq_length() == 0:
            generation_config = copy.copy(generation_config)
            generation_config.prefill_chunk_size = None
            model_kwargs = model_kwargs | {"prefill_chunk": chunk}
        return super()._prefill(input_ids, generation_config, model_kwargs, *args, **kwargs)

    def _prepare_position_ids_for_generation(self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]) -> Tensor:
        """As transformers', for this cache and with token types that nobody passed."""
        ids = model_kwargs.get("input_ids", inputs_tensor)
        own = {name: model_kwargs.get(name) for name in ("attention_mask", "past_key_values")}
        own["input_ids"] = ids if ids.ndim == 2 else None
        types = self.model.ready_positions(model_kwargs.get("mm_token_type_ids"), **own)
        return super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs | {"mm_token_type_ids": types})

    def _update_model_kwargs_for_generation(self, *args: Any, num_new_tokens: int = 1, **kwargs: Any) -> dict[str, Any]:
        """As transformers', but a text token has three equal ids, also where the prompt ends with a video."""
        kwargs["num_new_tokens"] = num_new_tokens
        model_kwargs: dict[str, Any] = super()._update_model_kwargs_for_generation(*args, **kwargs)
        ids = model_kwargs.get("position_ids")
        if ids is not None and ids.ndim == 3 and len(ids) == 4:
            ids[1:, :, -num_new_tokens:] = ids[1:, :, -num_new_tokens:].amax(0)
        return model_kwargs

    @staticmethod
    def create_masks_for_generate(
        config: Any, inputs_embeds: Tensor, attention_mask: Tensor | None, **_: Any
    ) -> Tensor | None:
        """Padding [B, L] as it is: no mask is made from it (transformers asks this for a static cache)."""
        return attention_mask


def _repeated(x: Tensor, counts: Tensor, times: int) -> Tensor:
    """Each stretch of x, of `counts` [B] rows, so many times."""
    return torch.cat([part for part in x.split(counts.tolist()) for _ in range(times)])
