"""Floating-point operations of one GPU in a micro-batch's forward, by kind of work; of branches, of what is read.

A backward takes twice a forward's; MFU counts both and nothing that is computed again.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from nsa_lab.attention.budget import Cost
from nsa_lab.scale.load import Load
from nsa_lab.scale.shape import Widths, part_of

SCORES = ", scores"
"""What the FLOPs of a branch's scores are called, after its name."""


def dense_flops(model: nn.Module, widths: Widths, load: Load) -> dict[str, float]:
    """Products of linear layers, 2 FLOPs a weight and row, by the rows that each part sees."""
    rows = {
        "vision tower": widths.patches * load.video,
        "merger": load.video,
        "language model": load.tokens,
        "gates": load.video,
        "compressors": widths.groups * load.video,
        "scorers": load.video,
        "partitioners": load.video,
        "reducer": load.video,
        "output head": load.labelled,
    }
    found = dict.fromkeys(rows, 0.0)
    for name, weight in model.named_parameters():
        part = part_of(name)
        if weight.ndim >= 2 and part in rows:
            found[part] += 2.0 * weight.numel() * rows[part]
    if not found["output head"]:  # tied to the embeddings
        found["output head"] = 2.0 * widths.hidden * widths.vocabulary * rows["output head"]
    return {part: flops for part, flops in found.items() if flops}


def vision_mlp_flops(widths: Widths, load: Load) -> float:
    """The three products of the vision tower's MLPs, which are part of its dense FLOPs."""
    per_patch = 6.0 * widths.vision_hidden * widths.vision_intermediate * widths.vision_layers
    return per_patch * widths.patches * load.video


def widening_flops(widths: Widths, load: Load) -> float:
    """The decoder MLPs' gate and up products: what a selective policy computes again."""
    return 4.0 * widths.hidden * widths.intermediate * widths.layers * load.tokens


def vision_attention_flops(widths: Widths, load: Load) -> float:
    """Windows, and whole frames in the layers that see them."""
    frame = widths.patches * load.frame_tokens
    windows = (widths.vision_layers - widths.vision_full) * min(widths.window_patches, frame)
    return 4.0 * widths.vision_hidden * (windows + widths.vision_full * frame) * widths.patches * load.video


def branch_flops(widths: Widths, costs: list[Mapping[str, Cost]], load: Load) -> dict[str, float]:
    """Summed over the layers, whose `costs` say by branch what a video query reads; scores apart."""
    found: dict[str, float] = {}
    for layer in costs:
        for name, cost in layer.items():
            read = Cost(cost.keys, cost.pooled)
            parts = {name: read, f"{name}{SCORES}": Cost(scored=cost.scored)}
            for own, part in parts.items():
                found[own] = found.get(own, 0.0) + part.flops(widths.heads, widths.head_dim) * load.video
    return {name: flops for name, flops in found.items() if flops}


def text_flops(widths: Widths, designs: list[Any], load: Load) -> float:
    """Text rows, which stand behind the video and read all of their sample (or its last `text_window`)."""
    rows = load.text_rows
    reach = [min(design.text_window or load.video_tokens, load.video_tokens) for design in designs]
    return 4.0 * widths.heads * widths.head_dim * rows * sum(reach)
