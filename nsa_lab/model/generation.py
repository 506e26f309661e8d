"""What transformers' generate() asks a model for: caches, masks and positions."""

from typing import Any

from torch import Tensor
from transformers import DynamicCache, Qwen2_5_VLForConditionalGeneration

from nsa_lab.model.cache import VideoCache


class Generation(Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL's generate() over our caches and positions; `model` is a VideoNSAModel."""

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any) -> None:
        """As transformers', but its plain cache is ours, which a reducer needs."""
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args)
        if type(model_kwargs.get("past_key_values")) is DynamicCache:
            model_kwargs["past_key_values"] = VideoCache(self.config.get_text_config())

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
