"""How well a model answers held-out samples."""

from typing import Any

import torch
from torch.utils.data import DataLoader

from nsa_lab.config import ExperimentConfig
from nsa_lab.evaluation.ask import own_settings
from nsa_lab.model import VideoNSAForConditionalGeneration
from nsa_lab.training.build import build_data
from nsa_lab.training.score import Meter, score_answers


@torch.no_grad()
def score(model: VideoNSAForConditionalGeneration, config: ExperimentConfig | None = None) -> dict[str, float]:
    """`val/loss`, `val/accuracy` and an accuracy per task on the validation samples of `config`, teacher-forced.

    Without a config, on those of the run that the model was loaded from. Tokens are placed as the model itself does
    (`config.positions` and its time ids a second), whatever data.positions says. Raises NsaLabError where there is no
    config.
    """
    data, _ = build_data(own_settings(model, config))
    data.val.tokens_per_second = model.config.vision_config.tokens_per_second
    meter, was_training = Meter(), model.training
    loader: DataLoader[Any] = data.val_dataloader()
    try:
        model.eval()
        for batch in loader:
            given = {name: value.to(model.device) if hasattr(value, "to") else value for name, value in batch.items()}
            meter.add(score_answers(model, given))
    finally:
        model.train(was_training)
    return meter.metrics("val", by_task=True)
