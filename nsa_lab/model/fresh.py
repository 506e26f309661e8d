"""Models with random weights, drawn one at a time in float32, kept in the dtype and on the device of the training."""

import logging

import torch
from torch import Tensor

from nsa_lab.config.schema import TrainingConfig
from nsa_lab.model.config import VideoNSAConfig
from nsa_lab.model.drawing import Drawing, Share, fill
from nsa_lab.model.video_nsa import VideoNSAForConditionalGeneration
from nsa_lab.origin import training_device

LARGE = 1_000_000_000
"""Parameters that a CPU draws in some ten seconds. A proxy has the same weights wherever it is trained."""
WHOLE = Share()

log = logging.getLogger(__name__)


def weights_dtype(training: TrainingConfig) -> torch.dtype:
    """What weights are kept in while they are trained."""
    return torch.bfloat16 if training.precision == "bf16-true" else torch.float32


def random_model(
    stored: VideoNSAConfig, training: TrainingConfig, device: torch.device | None = None
) -> VideoNSAForConditionalGeneration:
    """A model of the shape `stored`; its weights as `drawn_model` says."""
    model, parts = drawn_model(stored, training, WHOLE, device)
    fill(model, parts)
    return model


def drawn_model(
    stored: VideoNSAConfig, training: TrainingConfig, share: Share, device: torch.device | None = None
) -> tuple[VideoNSAForConditionalGeneration, dict[str, Tensor]]:
    """A model of the shape `stored` on the meta device, and the `share` of its random weights by name, for `fill`.

    Their values are those that its constructor draws, which depend on the seed and on `device`: by default the CPU, but
    for a model of LARGE parameters or more the GPU that trains it.
    """
    device = device or _where_to_draw(stored, training)
    with Drawing(share, device, weights_dtype(training)) as drawing:
        model = VideoNSAForConditionalGeneration(stored)
        return model, drawing.own_parts(model)


def _where_to_draw(stored: VideoNSAConfig, training: TrainingConfig) -> torch.device:
    device, text = training_device(training.accelerator), stored.text_config
    decoder = text.num_hidden_layers * text.hidden_size * (2 * text.hidden_size + 3 * text.intermediate_size)
    if device.type == "cpu" or decoder < LARGE:
        return torch.device("cpu")
    log.info("random weights are drawn on the GPU (%.1fB parameters in the decoder)", decoder / 1e9)
    return device
