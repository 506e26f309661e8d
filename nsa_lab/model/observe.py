"""What a model's attention did: gate means of the last forward, and the budget it spent on a batch."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from nsa_lab.attention.budget import attention_flops, paper_ratio
from nsa_lab.attention.layer import LayerRecord
from nsa_lab.config import layer_attention
from nsa_lab.model.config import get_design
from nsa_lab.model.video_nsa import VideoNSAForConditionalGeneration

MODEL_INPUTS = (
    "input_ids",
    "attention_mask",
    "position_ids",
    "mm_token_type_ids",
    "pixel_values_videos",
    "video_grid_thw",
)


def gate_means(model: VideoNSAForConditionalGeneration) -> dict[str, float]:
    """`gate/layer00/compression` and so on: the mean gate over tokens and heads in the last forward."""
    means: dict[str, float] = {}
    for index, layer in model.sparse_layers().items():
        if layer.gate_means is not None:
            for name, mean in zip(layer.branches, layer.gate_means.tolist(), strict=True):
                means[f"gate/layer{index:02d}/{name}"] = mean
    return means


@contextmanager
def recording(model: VideoNSAForConditionalGeneration) -> Iterator[dict[int, LayerRecord]]:
    """Forwards inside record gates, selected blocks and key counts per sparse layer; filled in at the end."""
    records: dict[int, LayerRecord] = {}
    layers = model.sparse_layers()
    for layer in layers.values():
        layer.recording, layer.record = True, None
    try:
        yield records
        records |= {index: layer.record for index, layer in layers.items() if layer.record is not None}
    finally:
        for layer in layers.values():
            layer.recording, layer.record = False, None


@torch.no_grad()
def measure_budget(model: VideoNSAForConditionalGeneration, batch: Mapping[str, Any]) -> dict[str, float]:
    """Attention spent on the video tokens of `batch`, the mean over queries, groups and layers.

    budget/paper_ratio: 2K/(L-1) at the mean video length; budget/keys_per_query: token keys read, exactly, with the
    ramp; budget/keys_per_query_with_compressed: pooled keys too; budget/ratio_to_dense: the former over the causal
    mean of dense attention; budget/flops_per_token: forward FLOPs of attention summed over layers.
    """
    inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
    with recording(model) as records:
        model(**inputs, use_cache=False, logits_to_keep=1)
    text_config = model.config.text_config
    grids = batch["video_grid_thw"]
    lengths = (grids.prod(1) // model.config.vision_config.spatial_merge_size**2).double()
    dense = float((lengths * (lengths + 1) / 2).sum() / lengths.sum())
    design = get_design(text_config)
    layers = range(text_config.num_hidden_layers)
    spent = [
        _layer_budget(layer_attention(design, i), records.get(i), dense, float(lengths.mean()), text_config)
        for i in layers
    ]
    return {name: sum(layer[name] for layer in spent) / len(spent) for name in spent[0] if name != FLOPS} | {
        FLOPS: sum(layer[FLOPS] for layer in spent)
    }


FLOPS = "budget/flops_per_token"


def _layer_budget(
    design: Any, record: LayerRecord | None, dense: float, length: float, text_config: Any
) -> dict[str, float]:
    if record is None:
        tokens = with_compressed = dense
        scored = 0.0
    else:
        tokens = sum(count for name, count in record.keys_seen.items() if name != "compression")
        with_compressed = sum(record.keys_seen.values())
        blocks = record.partition.num_blocks / (len(record.partition.cu_blocks) - 1)
        scored = blocks / 2 if "selection" in record.keys_seen else 0.0
    head_dim = text_config.hidden_size // text_config.num_attention_heads
    return {
        "budget/paper_ratio": paper_ratio(design, round(length)),
        "budget/keys_per_query": tokens,
        "budget/keys_per_query_with_compressed": with_compressed,
        "budget/ratio_to_dense": tokens / dense,
        FLOPS: attention_flops(with_compressed, scored, text_config.num_attention_heads, head_dim),
    }
