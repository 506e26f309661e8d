"""What a model's attention did: gate means, and the budget it spent on a batch."""

from collections.abc import Mapping
from typing import Any

import torch

from nsa_lab.attention.budget import paper_ratio
from nsa_lab.attention.methods.dense import causal_mean
from nsa_lab.attention.trace import Trace
from nsa_lab.model.video_nsa import VideoNSAForConditionalGeneration
from nsa_lab.plugin import settings

MODEL_INPUTS = (
    "input_ids",
    "attention_mask",
    "position_ids",
    "mm_token_type_ids",
    "pixel_values_videos",
    "video_grid_thw",
)


def gate_metrics(trace: Trace) -> dict[str, float]:
    """The mean gate over tokens and heads; the trace must want `gate_means`.

    `gate/layer00/compression` and so on by layer, and `gate/compression`, the mean of the layers that have the branch.
    """
    metrics: dict[str, float] = {}
    branches: dict[str, list[float]] = {}
    for layer, means in trace.of("gate_means").items():
        for name, mean in means.items():
            metrics[f"gate/layer{layer:02d}/{name}"] = mean
            branches.setdefault(name, []).append(mean)
    return metrics | {f"gate/{name}": sum(means) / len(means) for name, means in branches.items()}


@torch.no_grad()
def measure_budget(model: VideoNSAForConditionalGeneration, batch: Mapping[str, Any]) -> dict[str, float]:
    """Attention spent on the video tokens of `batch`, the mean over queries, groups and layers.

    budget/paper_ratio: 2K/(L-1), at most 1, at the mean video length; budget/keys_per_query: token keys read, exactly,
    with the ramp; budget/keys_per_query_with_compressed: pooled keys too; budget/ratio_to_dense: keys_per_query over
    the causal mean of dense attention, more than 1 where branches read the same keys twice; budget/flops_per_token:
    forward FLOPs of attention summed over layers.
    """
    trace = Trace("cost", "choice")
    inputs = {name: batch[name] for name in (*MODEL_INPUTS, "host") if name in batch}
    model(**inputs, use_cache=False, logits_to_keep=1, trace=trace)
    merge = model.config.vision_config.spatial_merge_size
    lengths = batch["video_grid_thw"].prod(1) // merge**2
    spent = [_layer_budget(attention, trace, lengths) for attention in model.attentions()]
    return {name: sum(layer[name] for layer in spent) / len(spent) for name in spent[0] if name != FLOPS} | {
        FLOPS: sum(layer[FLOPS] for layer in spent)
    }


FLOPS = "budget/flops_per_token"


def _layer_budget(attention: Any, trace: Trace, lengths: torch.Tensor) -> dict[str, float]:
    method = attention.method
    cost = method.cost(trace, lengths)
    attended = method.attended(settings(attention.design, "method"))
    return {
        "budget/paper_ratio": paper_ratio(attended, round(float(lengths.double().mean()))),
        "budget/keys_per_query": cost.keys,
        "budget/keys_per_query_with_compressed": cost.keys + cost.pooled,
        "budget/ratio_to_dense": cost.keys / causal_mean(lengths),
        FLOPS: cost.flops(method.dims.num_heads, method.dims.head_dim),
    }
