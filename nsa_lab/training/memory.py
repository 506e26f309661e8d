"""What is said when a GPU's memory does not do: how much there was, what held it, and what to change."""

import logging
import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch

from nsa_lab.config import ExperimentConfig
from nsa_lab.errors import NsaLabError, first_line
from nsa_lab.files import whole
from nsa_lab.model.fresh import LARGE
from nsa_lab.model.trained import kept_checkpoint
from nsa_lab.training.directory import RunDirectory
from nsa_lab.training.module import VideoModule
from nsa_lab.training.ranks import Ranks

ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Where torch looks for settings of its allocator; the second is the name that all releases know."""
GIB = 2**30

log = logging.getLogger(__name__)


class MemoryWatch(L.Callback):
    """Remembers which lines of code hold the GPU's memory, and writes it down when there is none left.

    Before Lightning moves the model away, into `file`: a pickle for https://pytorch.org/memory_viz. The error gets a
    note that says where it is, or why it is not.
    """

    def __init__(self, setting: str, file: Path):
        self.setting, self.file = setting, file
        self.recording = False

    def on_fit_start(self, trainer: L.Trainer, module: VideoModule) -> None:  # type: ignore[override]
        parameters = sum(parameter.numel() for parameter in module.model.parameters())
        self.recording = records(self.setting, parameters, module.device)
        if self.recording:
            torch.cuda.memory._record_memory_history("state", context="state", stacks="python")

    def on_exception(self, trainer: L.Trainer, module: VideoModule, exception: BaseException) -> None:  # type: ignore[override]
        if self.recording and isinstance(exception, torch.OutOfMemoryError):
            exception.add_note(self._write(torch.cuda.memory._snapshot()))
        self._stop()

    def on_fit_end(self, trainer: L.Trainer, module: VideoModule) -> None:  # type: ignore[override]
        self._stop()

    def _write(self, snapshot: Any) -> str:
        try:
            with whole(self.file) as unfinished, open(unfinished, "wb") as stream:
                pickle.dump(snapshot, stream)
        except OSError as error:
            return f"what held it could not be written ({error.strerror or error})"
        return f"what held it is in {self.file} (for https://pytorch.org/memory_viz)"

    def _stop(self) -> None:
        if self.recording:
            torch.cuda.memory._record_memory_history(None)
        self.recording = False


def records(setting: str, parameters: int, device: torch.device) -> bool:
    """Whether training.memory_history records on `device`; `auto` does so where a step has work enough to hide it."""
    if device.type != "cuda" or setting != "auto":
        return device.type == "cuda" and setting == "true"
    if parameters >= LARGE:
        log.info("training.memory_history=auto: on (%.1fB parameters)", parameters / 1e9)
    return parameters >= LARGE


@contextmanager
def room_on_gpu(config: ExperimentConfig, home: RunDirectory, ranks: Ranks) -> Iterator[None]:
    """Turn a GPU's memory that does not do in the block into an NsaLabError that says what to change."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise NsaLabError(_out_of_memory(error, config, home, ranks)) from error


def _out_of_memory(error: torch.OutOfMemoryError, config: ExperimentConfig, home: RunDirectory, ranks: Ranks) -> str:
    """What was asked for, the peak, what is kept, and what to change, the cheapest first."""
    asked = re.search(r"Tried to allocate ([\d.]+ \w+)", str(error))
    of = re.search(r"total capacity of ([\d.]+ \w+)", str(error))
    peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    parts = [
        f"the GPU's memory{f' of {of[1]}' if of else ''} does not do: "
        f"{f'{asked[1]} were asked for' if asked else first_line(error)}, "
        f"{peak / GIB:.2f} GiB was the peak, {reserved / GIB:.2f} with the allocator's gaps",
        *getattr(error, "__notes__", []),
        kept_checkpoint(home.checkpoints),
        f"go on from there with {', or '.join(going_on(config, ranks))}",
        f"or train another run with {', or '.join(anew(config))}",
    ]
    return "; ".join(parts)


def going_on(config: ExperimentConfig, ranks: Ranks) -> list[str]:
    """Settings that need less memory and leave the run what it is."""
    found = []
    if config.training.activation_checkpointing and config.training.recompute != "full":
        found.append("training.recompute=full")
    if not any("expandable_segments:True" in os.environ.get(name, "") for name in ALLOCATOR):
        found.append(f"{ALLOCATOR[1]}=expandable_segments:True in the environment")
    return [*found, f"more GPUs (training.devices, now {ranks.world}; training.context_parallel shares samples)"]


def anew(config: ExperimentConfig) -> list[str]:
    """Settings that need less memory and make another run."""
    training, found = config.training, []
    if not training.activation_checkpointing:
        found.append("training.activation_checkpointing=true")
    if training.batch_size > 1:
        together = training.batch_size * training.accumulate
        found.append(f"training.batch_size=1 training.accumulate={together} (the same samples a step)")
    if config.data.annotations is None:
        return [*found, "shorter clips (tasks.frames)"]
    frames, pixels = config.data.max_frames, config.data.max_pixels
    return [*found, f"fewer frames (data.max_frames, now {frames}) or pixels (data.max_pixels, now {pixels})"]
