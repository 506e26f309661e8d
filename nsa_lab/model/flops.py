"""The arithmetic that a training step asks for, and what a GPU could do; model FLOPs used (MFU) is their ratio."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from nsa_lab.model.video_nsa import VideoNSAForConditionalGeneration

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 FLOPs a second by a part of the GPU's name, from the vendor's data sheets."""


def peak_flops(gpu: str) -> float | None:
    """Dense bfloat16 FLOPs a second of the GPU of this name; None where it is in no data sheet here."""
    return next((rate for name, rate in PEAK.items() if name in gpu), None)


class StepFlops:
    """FLOPs of a forward and a backward, nothing counted twice: 6 a weight and row, attention's pairs 3 times.

    Sparse attention counts the pairs that it reads. Left out, as less than 1% each: the vision tower's attention, text
    rows, everything elementwise.
    """

    def __init__(self, model: VideoNSAForConditionalGeneration):
        vision = model.model.visual
        self.token, self.label, self.merged = map(_weights, (model.model.language_model, model.lm_head, vision.merger))
        self.patch = _weights(vision.blocks) + _weights(vision.patch_embed)
        self.patches_per_token = model.config.vision_config.spatial_merge_size**2

    def of(self, batch: Mapping[str, Any], attention: float, kept: float = 1.0) -> float:
        """Of a packed batch; attention: its forward FLOPs a video token (budget/flops_per_token); kept: the share of
        the video tokens that a decoder layer has (budget/tokens_kept)."""
        patches = len(batch["pixel_values_videos"])
        video = patches // self.patches_per_token
        rows = batch["input_ids"].numel() - (1 - kept) * video
        dense = self.token * rows + self.patch * patches + self.merged * video
        return 6.0 * (dense + self.label * len(batch["label_rows"])) + 3 * attention * video


def _weights(module: nn.Module) -> int:
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear | nn.Conv3d))
