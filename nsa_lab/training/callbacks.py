"""Measures a run as it goes and reports it: to the logger, the progress bar and the caller."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch

from nsa_lab.config.schema import TrainingConfig
from nsa_lab.model import gate_metrics, measure_budget
from nsa_lab.model.flops import StepFlops, peak_flops
from nsa_lab.model.observe import FLOPS, KEPT
from nsa_lab.model.partitions import partition_statistics
from nsa_lab.training.clock import Clock
from nsa_lab.training.module import VideoModule
from nsa_lab.training.ranks import anyone, gathered, together, total


@dataclass(frozen=True)
class Progress:
    """Where a run stands: `step` of `steps` optimiser steps, the latest of every metric, and whether just validated."""

    step: int
    steps: int
    metrics: dict[str, float]
    validated: bool


class Reporter(L.Callback):
    """Logs every `log_every` steps and after each validation; stops the run early when `on_progress` says so.

    `throughput/data_wait` is the share of the steps' time in which the host waits for the next batch;
    `throughput/mfu` the FLOPs that the model asks for over those that the GPU could do in bfloat16, where its peak is
    known and training.precision uses it (attention as measured on the first validation batch; see StepFlops).
    """

    def __init__(self, config: TrainingConfig, on_progress: Callable[[Progress], bool] | None):
        self.config, self.on_progress = config, on_progress
        self.metrics: dict[str, float] = {}
        self.validated_step = -1
        self.stopped = False
        self.clock, self.tokens, self.flops = Clock(), 0, 0.0
        self.waited = 0.0
        self.step_flops: StepFlops | None = None
        self.began, self.before = time.monotonic(), 0.0

    @property
    def seconds(self) -> float:
        """How long it has trained and validated, in earlier processes up to the checkpoint that went on too."""
        return self.before + time.monotonic() - self.began

    def state_dict(self) -> dict[str, Any]:
        metrics = self.metrics | self.clock.overall()
        return {"metrics": metrics, "validated_step": self.validated_step, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.metrics = dict(state_dict["metrics"])
        self.validated_step = state_dict["validated_step"]
        # A checkpoint from before this was kept: that time is unknown, and stays so.
        self.before = float(state_dict.get("seconds", math.nan))

    def setup(self, trainer: L.Trainer, module: VideoModule, stage: str) -> None:  # type: ignore[override]
        parameters = sum(parameter.numel() for parameter in module.model.parameters())
        trainer.loggers[0].log_hyperparams({"model/parameters": parameters})
        self.metrics["model/parameters"] = float(parameters)

    def on_train_start(self, trainer: L.Trainer, module: VideoModule) -> None:  # type: ignore[override]
        budget = _budget(trainer, module) | trainer.datamodule.packing()  # type: ignore[attr-defined]
        self.metrics |= budget
        if trainer.global_step == 0:
            self._log(trainer, budget)
        peak = _peak(module)
        self.clock = Clock(module.ranks.world, peak)
        self.step_flops = StepFlops(module.model) if peak else None
        self._start(trainer)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, module: VideoModule, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        stepped = (batch_idx + 1) % self.config.accumulate == 0
        self.tokens += batch["input_ids"].numel()
        if self.step_flops is not None:
            self.flops += self.step_flops.of(batch, self.metrics[FLOPS], self.metrics.get(KEPT, 1.0))
        if not stepped:
            return
        before, self.waited = self.waited, trainer.datamodule.waited  # type: ignore[attr-defined]
        self.clock.add(*total(self.tokens, self.waited - before, self.flops))
        self.tokens, self.flops = 0, 0.0
        step = trainer.global_step
        metrics = module.train_metrics()
        module.log("loss", metrics["train/loss"], prog_bar=True, logger=False, batch_size=1)
        module.log("accuracy", metrics["train/accuracy"], prog_bar=True, logger=False, batch_size=1)
        if step % self.config.log_every == 0 or step == self.config.steps:
            self._log(trainer, metrics | gathered(self._partitions(module))[-1] | self.clock.lap())
            self._tell(trainer, validated=False)

    def on_validation_end(self, trainer: L.Trainer, module: VideoModule) -> None:  # type: ignore[override]
        self.validated_step = trainer.global_step
        # What a learned partition costs changes while it learns.
        self._log(trainer, module.val_metrics() | _last_gates(trainer, module) | _budget(trainer, module))
        self._tell(trainer, validated=True)
        self._start(trainer)

    def _start(self, trainer: L.Trainer) -> None:
        """Count time, and what of it is waiting, from now on."""
        self.clock.start()
        self.waited = trainer.datamodule.waited  # type: ignore[attr-defined]

    def _partitions(self, module: VideoModule) -> dict[str, float]:
        """The blocks of the last batch, and as `partition/share_of_step` their share of the time since the last lap."""
        share = module.model.partitions.clock.lap() / self.clock.seconds
        statistics = partition_statistics(module.trace)
        return statistics | ({"partition/share_of_step": share} if statistics else {})

    def _log(self, trainer: L.Trainer, values: dict[str, float]) -> None:
        self.metrics |= values
        trainer.loggers[0].log_metrics(values, step=trainer.global_step)

    def _tell(self, trainer: L.Trainer, validated: bool) -> None:
        if self.stopped or not (self.on_progress or together()):
            return
        progress = Progress(trainer.global_step, self.config.steps, dict(self.metrics), validated)
        stop = anyone(bool(self.on_progress and self.on_progress(progress)))
        if stop and trainer.global_step < self.config.steps:
            self.stopped = trainer.should_stop = True


def _peak(module: VideoModule) -> float | None:
    """FLOPs a second that this GPU could do as the model computes; None where nobody says."""
    if module.device.type != "cuda" or module.config.precision == "32-true":
        return None
    return peak_flops(torch.cuda.get_device_name(module.device))


def _last_gates(trainer: L.Trainer, module: VideoModule) -> dict[str, float]:
    """The gates on the last validation batch, whichever processes had it."""
    last = trainer.datamodule.val_sampler.last_rank  # type: ignore[attr-defined]
    return module.ranks.mean(gate_metrics(module.trace), module.video_rows, of=last)


@torch.no_grad()
def _budget(trainer: L.Trainer, module: VideoModule) -> dict[str, float]:
    data = trainer.datamodule  # type: ignore[attr-defined]
    batch = module.transfer_batch_to_device(data.on_before_batch_transfer(data.first_val_batch()), module.device, 0)
    with trainer.precision_plugin.forward_context():
        budget = measure_budget(module.model, trainer.precision_plugin.convert_input(batch))
    return module.ranks.mean(budget, len(batch["host"].layout.video_rows))
