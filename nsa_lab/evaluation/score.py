"""How well a model answers held-out samples."""

from typing import Any

import torch
from torch.utils.data import DataLoader

from nsa_lab.config import ExperimentConfig
from nsa_lab.evaluation.ask import data_settings
from nsa_lab.model import VideoNSAForConditionalGeneration
from nsa_lab.training.run import build_data
from nsa_lab.training.score import Meter, score_answers


@torch.no_grad()
def evaluate(model: VideoNSAForConditionalGeneration, config: ExperimentConfig | None = None) -> dict[str, float]:
    """`val/loss`, `val/accuracy` and an accuracy per task on the validation samples of `config`, teacher-forced.

    Without a config, on those of the run that the model was loaded from. Raises NsaLabError where there is none.
    """
    data, _ = build_data(data_settings(model) if config is None else config)
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
