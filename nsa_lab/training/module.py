"""The LightningModule: one packed batch to a loss, checked to be finite on the spot."""

import math
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from nsa_lab.attention.trace import Trace
from nsa_lab.config.schema import TrainingConfig
from nsa_lab.model import VideoNSAForConditionalGeneration
from nsa_lab.model.context_parallel import ContextGroup
from nsa_lab.model.drawing import fill
from nsa_lab.training.fsdp import shard, whole_value
from nsa_lab.training.ranks import ALONE, Ranks, gathered, total
from nsa_lab.training.restart import recount_batches
from nsa_lab.training.schedule import build_optimizer
from nsa_lab.training.score import Meter, score_answers


class Divergence(Exception):
    """The loss or the gradient norm of optimiser step `step` (from 1) is not finite; `batch` is its batch number."""

    def __init__(self, quantity: str, value: float, step: int, batch: int | None, learning_rate: float):
        super().__init__(f"{quantity} is {value} at step {step}")
        self.quantity, self.value, self.step = quantity, value, step
        self.batch, self.learning_rate = batch, learning_rate


class VideoModule(L.LightningModule):
    """Trains `model` on the answers of packed video batches (see `nsa_lab.data.collate`).

    parts: where several processes train it, this one's rows of the weights, by name; `model` is on the meta device.
    group: the processes that share each sample with this one; None: none does.
    """

    def __init__(
        self,
        model: VideoNSAForConditionalGeneration,
        config: TrainingConfig,
        seed: int,
        ranks: Ranks = ALONE,
        parts: Mapping[str, Tensor] | None = None,
        group: ContextGroup | None = None,
    ):
        super().__init__()
        self.parts = parts
        self.model, self.config, self.seed, self.ranks, self.group = model, config, seed, ranks, group
        self.train_meter, self.val_meter = Meter(), Meter()
        self.gradient_norm = self.learning_rate = 0.0
        self.trace = Trace()
        self.batch_number = 0
        self.step_labels = 0.0
        self.video_rows = 0

    def configure_model(self) -> None:
        if self._device_mesh is not None:
            self.split(self._device_mesh["data_parallel"])

    def split(self, mesh: DeviceMesh) -> None:
        """Share the model out over `mesh` [processes], and put this one's rows in their place; again is no harm."""
        shard(self.model, mesh, self.config.precision)
        if self.parts:
            fill(self.model, self.parts)
            self.parts = None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        recount_batches(checkpoint, self.config.accumulate)

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        # Whatever is random inside the model follows from the step too, so that a resumed run repeats it.
        step, part = divmod(batch_idx, self.config.accumulate)
        data = self.ranks.data
        number = (step * data.world + data.rank) * self.config.accumulate + part
        torch.manual_seed(self.seed * 1_000_003 + number)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        if batch_idx % self.config.accumulate == 0:
            self.train_meter.reset()
            self.step_labels = total(batch["step_labels"])[0] / self.ranks.context
        self.batch_number = batch_idx
        self.learning_rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.trace = Trace("partition")
        score = score_answers(self.model, batch, self.trace)
        self.train_meter.add(score)
        extra = self.trace.loss()
        # A step's loss is the sum over its labelled tokens over their number, however it is cut into micro-batches and
        # processes; Lightning divides each by accumulate, FSDP the sum of the gradients by the number of processes.
        parts = self.config.accumulate * self.ranks.world
        loss = score.loss * (parts * score.tokens / self.step_labels)
        loss = loss if extra is None else loss + extra
        # Of a shared sample any process may have no label, and go on where another's loss is not finite.
        value = total(loss.item())[0] if self.group else loss.item()
        self._check_finite("the loss", value, batch_idx)
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient's norm to `gradient_clip` (0: not at all) and keep the norm it had."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = clip_grad_norm_(parameters, self.config.gradient_clip or float("inf"))
        self.gradient_norm = whole_value(norm).item()
        # The scaler of 16-mixed meets infinite gradients as a matter of course, and skips those steps itself.
        if self.config.precision != "16-mixed":
            self._check_finite("the gradient norm", self.gradient_norm, self.batch_number)

    def on_validation_epoch_start(self) -> None:
        self.val_meter.reset()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.trace = Trace("gate_means")
        self.video_rows = len(batch["host"].layout.video_rows)
        score = score_answers(self.model, batch, self.trace)
        if self.trainer.datamodule.val_sampler.counts(batch_idx):  # type: ignore[attr-defined]
            self.val_meter.add(score)

    def val_metrics(self) -> dict[str, float]:
        """Metrics of the validation just run. Raises Divergence where the loss is not finite."""
        metrics = self.val_meter.metrics("val", by_task=True)
        self._check_finite("the validation loss", metrics["val/loss"], None)
        return metrics

    def train_metrics(self) -> dict[str, float]:
        """Metrics of the optimiser step just taken; the learning rate is the one it used.

        `train/router_loss` and so on: what parts of that name add to the loss (of the step's last batch), weighted.
        """
        extra: dict[str, float] = {}
        for (_, name), value in self.trace.losses.items():
            key = f"train/{name}_loss"
            extra[key] = extra.get(key, 0.0) + value.item()
        return self.train_meter.metrics("train", by_task=False) | {
            "gradient_norm": self.gradient_norm,
            "learning_rate": self.learning_rate,
            **gathered(extra)[-1],
        }

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer, schedule = build_optimizer(self.model, self.config)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _check_finite(self, quantity: str, value: float, batch: int | None) -> None:
        if not math.isfinite(value):
            step = self.trainer.global_step + (batch is not None)
            raise Divergence(quantity, value, step, batch, self.learning_rate)
