"""VideoNSA models: Qwen2.5-VL with sparse attention to video."""

from nsa_lab.model.checkpoint import build_model, load_model
from nsa_lab.model.observe import MODEL_INPUTS, gate_metrics, measure_budget
from nsa_lab.model.video_nsa import VideoNSAForConditionalGeneration

__all__ = [
    "MODEL_INPUTS",
    "VideoNSAForConditionalGeneration",
    "build_model",
    "gate_metrics",
    "load_model",
    "measure_budget",
]
