"""The optimiser and its learning rate: AdamW, linear warm-up, then a cosine to a floor."""

import math

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from nsa_lab.config.schema import TrainingConfig


def learning_rate_factor(step: int, config: TrainingConfig) -> float:
    """The learning rate of optimiser step `step` (from 0) as a share of `learning_rate`."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    floor = config.min_learning_rate_ratio
    return floor + (1 - floor) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: matrices, which decay, and embeddings, biases and norms, which do not."""
    embeddings = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [p for p in parameters if p.ndim >= 2 and p not in embeddings]
    plain = [p for p in parameters if p.ndim < 2 or p in embeddings]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def build_optimizer(model: nn.Module, config: TrainingConfig) -> tuple[AdamW, LambdaLR]:
    """AdamW over the trainable parameters and its schedule, to be stepped once an optimiser step."""
    # The gradient scaler of 16-mixed needs to unscale before clipping, which a fused optimiser does not allow.
    fused = config.precision != "16-mixed"
    groups = parameter_groups(model, config.weight_decay)
    optimizer = AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=fused)
    return optimizer, LambdaLR(optimizer, lambda step: learning_rate_factor(step, config))
