"""The Hugging Face config of a VideoNSA model: Qwen2.5-VL's, with the attention design inside the text config."""

from collections.abc import Mapping
from typing import Any

from transformers import Qwen2_5_VLConfig

from nsa_lab.config import AttentionConfig, attention_from_dict, to_dict
from nsa_lab.config.sizes import ModelSize

TOKENS_PER_SECOND = 2


class VideoNSAConfig(Qwen2_5_VLConfig):
    """Qwen2_5_VLConfig under a name of its own, so that no Auto class can load a checkpoint as a dense model.

    `text_config.video_nsa` holds the attention design as plain dicts (nsa_lab.config.AttentionConfig), `positions` what
    data.positions was when the weights were trained.
    """

    model_type = "video_nsa"


def set_design(config: VideoNSAConfig, attention: AttentionConfig) -> None:
    """Store `attention` in `config`."""
    config.text_config.video_nsa = to_dict(attention)


def get_design(text_config: Any) -> AttentionConfig:
    """The attention design stored in a text config. Raises ValueError where there is none."""
    stored = getattr(text_config, "video_nsa", None)
    if stored is None:
        raise ValueError("the text config holds no `video_nsa` design; build it with nsa_lab.model.config.set_design")
    return attention_from_dict(stored)


def published_design(text_config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The design of VideoNSA's published checkpoint, as a tree, by its text config: None where it is another's.

    Blocks of 64, four key/value heads and the gate's temperature are constants of the published code. Raises ValueError
    where a count is no positive integer.
    """
    if "block_counts" not in text_config:
        return None
    count, size = text_config["block_counts"], text_config.get("window_size", 256)
    for name, value in (("block_counts", count), ("window_size", size)):
        if type(value) is not int or value < 1:
            raise ValueError(f"{name}={value!r} is no positive integer")
    branches = {"selection": {"block_count": count}, "window": {"size": size}}
    return {"method": "released", "partition": {"block_size": 64}, "branches": branches}


def positions_of(config: Any) -> str:
    """data.positions of a model's config; weights of ours that say nothing were saved when there was but one."""
    return str(getattr(config, "positions", "transformers"))


def config_from_size(
    size: ModelSize, tokenizer: Any, attention: AttentionConfig, positions: str = "qwen"
) -> VideoNSAConfig:
    """The config of a fresh model of `size` for `tokenizer`, with M-RoPE sections in Qwen's proportion 2:3:3."""
    eighth = size.head_dim // 16
    token = tokenizer.convert_tokens_to_ids
    return VideoNSAConfig(
        text_config={
            "vocab_size": size.vocab_size or -(-len(tokenizer) // 8) * 8,
            "hidden_size": size.hidden_size,
            "intermediate_size": size.intermediate_size,
            "num_hidden_layers": size.num_layers,
            "num_attention_heads": size.num_heads,
            "num_key_value_heads": size.num_kv_heads,
            "rms_norm_eps": 1e-6,
            "initializer_range": size.initializer_range,
            "max_position_embeddings": 128_000,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": size.rope_theta,
                "mrope_section": [2 * eighth, 3 * eighth, 3 * eighth],
            },
            "tie_word_embeddings": size.tie_word_embeddings,
            "bos_token_id": None,
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
            "video_nsa": to_dict(attention),
        },
        vision_config={
            "depth": size.vision_layers,
            "hidden_size": size.vision_hidden_size,
            "intermediate_size": size.vision_intermediate_size,
            "num_heads": size.vision_heads,
            "initializer_range": size.initializer_range,
            "out_hidden_size": size.hidden_size,
            "fullatt_block_indexes": list(size.vision_full_attention),
            "tokens_per_second": TOKENS_PER_SECOND,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=size.tie_word_embeddings,
        positions=positions,
    )
