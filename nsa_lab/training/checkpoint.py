"""Checkpoints: written whole or not at all, the one before kept."""

import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.distributed.checkpoint import CheckpointException

from nsa_lab.errors import NsaLabError, first_line
from nsa_lab.files import clear_unfinished, remove, whole
from nsa_lab.model.trained import LAST, PREVIOUS, kept_checkpoint
from nsa_lab.training.fsdp import own_part
from nsa_lab.training.ranks import gathered


class CheckpointWriter(L.Callback):
    """Writes `folder/last.ckpt` every `every` optimiser steps and at step `steps`; the one before is previous.ckpt.

    Several processes write a folder of parts in its place.

    Where a validation falls on the same step, the checkpoint follows it, so that a resumed run need not repeat it.
    """

    def __init__(self, folder: Path, *, every: int, val_every: int, steps: int):
        self.folder, self.every, self.val_every, self.steps = folder, every, val_every, steps
        self.written: int | None = None

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step % self.val_every:
            self._write_if_due(trainer)

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.state.fn == "fit":
            self._write_if_due(trainer)

    def _write_if_due(self, trainer: L.Trainer) -> None:
        step = trainer.global_step
        if step != self.written and step and (step % self.every == 0 or step == self.steps):
            self._write(trainer)
            self.written = step

    def _write(self, trainer: L.Trainer) -> None:
        _refuse_broken_weights(trainer)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if trainer.is_global_zero:
                self._write_and_keep_last(trainer)
            else:
                trainer.save_checkpoint(self.folder)  # a part, into the folder that the first process names
        except (OSError, CheckpointException) as error:
            raise NsaLabError(
                f"cannot write {self.folder / LAST} at step {trainer.global_step}: {_reason(error)}; "
                f"{kept_checkpoint(self.folder)}; make room and run the same command again"
            ) from error

    def _write_and_keep_last(self, trainer: L.Trainer) -> None:
        last, previous = self.folder / LAST, self.folder / PREVIOUS
        clear_unfinished(self.folder)
        with whole(last) as unfinished:
            trainer.save_checkpoint(unfinished)
            if last.exists():
                remove(previous)
                os.replace(last, previous)


def _reason(error: OSError | CheckpointException) -> str:
    """Why a file, or a part of one process, could not be written."""
    if isinstance(error, CheckpointException):
        rank, (failure, _) = next(iter(error.failures.items()))
        return f"process {rank}: {first_line(failure)}"
    return error.strerror or str(error)


def _refuse_broken_weights(trainer: L.Trainer) -> None:
    weights = trainer.lightning_module.named_parameters()
    broken = next((name for name, weight in weights if not torch.isfinite(own_part(weight)).all()), None)
    if name := next(filter(None, gathered(broken)), None):
        raise NsaLabError(
            f"{name} is not finite after step {trainer.global_step}, so no checkpoint was written; "
            "lower training.learning_rate or training.gradient_clip"
        )
