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
    forward FLOPs of attention summed over layers. Queries that a reducer dropped or merged read nothing;
    budget/tokens_kept, where there is one: the share of the video tokens that a layer has.
    """
    trace = Trace("cost", "choice", "kept")
    inputs = {name: batch[name] for name in (*MODEL_INPUTS, "host") if name in batch}
    model(**inputs, use_cache=False, logits_to_keep=1, trace=trace)
    merge = model.config.vision_config.spatial_merge_size
    lengths = batch["video_grid_thw"].prod(1) // merge**2
    spent = [_layer_budget(attention, trace, lengths) for attention in model.attentions()]
    hidden = {FLOPS} if trace.of("kept") else {FLOPS, KEPT}
    return {name: sum(layer[name] for layer in spent) / len(spent) for name in spent[0] if name not in hidden} | {
        FLOPS: sum(layer[FLOPS] for layer in spent)
    }


FLOPS, KEPT = "budget/flops_per_token", "budget/tokens_kept"


def _layer_budget(attention: Any, trace: Trace, lengths: torch.Tensor) -> dict[str, float]:
    method, kept = attention.method, trace.found.get((attention.layer_idx, "kept"), lengths)
    share = float(kept.sum() / lengths.sum())
    cost = method.cost(trace, kept)
    attended = method.attended(settings(attention.design, "method"))
    return {
        # Of dense attention: a share of its queries is left, and each reads among a share of its keys.
        "budget/paper_ratio": paper_ratio(attended, round(float(kept.double().mean()))) * share**2,
        "budget/keys_per_query": cost.keys * share,
        "budget/keys_per_query_with_compressed": (cost.keys + cost.pooled) * share,
        "budget/ratio_to_dense": cost.keys * share / causal_mean(lengths),
        FLOPS: cost.flops(method.dims.num_heads, method.dims.head_dim) * share,
        KEPT: share,
    }
