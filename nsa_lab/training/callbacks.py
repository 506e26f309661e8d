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
from nsa_lab.model.partitions import partition_statistics
from nsa_lab.training.module import VideoModule
from nsa_lab.training.ranks import anyone, gathered, together, total


@dataclass(frozen=True)
class Progress:
    """Where a run stands: `step` of `steps` optimiser steps, the latest of every metric, and whether just validated."""

    step: int
    steps: int
    metrics: dict[str, float]
    validated: bool


class Clock:
    """Steps and tokens per second, validation and the first (warming) step left out; `lap` since the last lap."""

    def __init__(self) -> None:
        self.total, self.current = [0.0, 0, 0], [0.0, 0, 0]
        self.warm = False

    def start(self) -> None:
        self.started = time.perf_counter()

    def add(self, tokens: float, steps: int) -> None:
        elapsed = time.perf_counter() - self.started
        for sums in (self.total, self.current):
            for place, value in enumerate((elapsed, tokens, steps)):
                sums[place] += value
        if steps and not self.warm:
            self.warm, self.first = True, list(self.total)
        self.start()

    def lap(self) -> dict[str, float]:
        """Rates since the last lap."""
        current, self.current = self.current, [0.0, 0, 0]
        return _rates(*current)

    def overall(self) -> dict[str, float]:
        """Rates of every step but the first, or nothing before the first."""
        if not self.warm:
            return {}
        rest = [total - first for total, first in zip(self.total, self.first, strict=True)]
        return _rates(*(rest if rest[2] else self.total))


def _rates(seconds: float, tokens: float, steps: float) -> dict[str, float]:
    return {"throughput/tokens_per_second": tokens / seconds, "throughput/seconds_per_step": seconds / steps}


class Reporter(L.Callback):
    """Logs every `log_every` steps and after each validation; stops the run early when `on_progress` says so."""

    def __init__(self, config: TrainingConfig, on_progress: Callable[[Progress], bool] | None):
        self.config, self.on_progress = config, on_progress
        self.metrics: dict[str, float] = {}
        self.validated_step = -1
        self.stopped = False
        self.clock, self.tokens = Clock(), 0
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
        self.clock.start()

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, module: VideoModule, outputs: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        stepped = (batch_idx + 1) % self.config.accumulate == 0
        self.tokens += batch["input_ids"].numel()
        if not stepped:
            return
        (tokens,), self.tokens = total(self.tokens), 0
        self.clock.add(tokens, 1)
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
        self.clock.start()

    def _partitions(self, module: VideoModule) -> dict[str, float]:
        """The blocks of the last batch, and as `partition/share_of_step` their share of the time since the last lap."""
        share = module.model.partitions.clock.lap() / self.clock.current[0]
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


def _last_gates(trainer: L.Trainer, module: VideoModule) -> dict[str, float]:
    """The gates on the last validation batch, whichever process had it."""
    return gathered(gate_metrics(module.trace))[trainer.datamodule.val_sampler.last_rank]  # type: ignore[attr-defined]


@torch.no_grad()
def _budget(trainer: L.Trainer, module: VideoModule) -> dict[str, float]:
    batch = trainer.datamodule.first_val_batch()  # type: ignore[attr-defined]
    batch = module.transfer_batch_to_device(batch, module.device, 0)
    with trainer.precision_plugin.forward_context():
        return measure_budget(module.model, trainer.precision_plugin.convert_input(batch))
