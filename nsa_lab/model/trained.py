"""The weights of a run: which checkpoint of its folder counts, and whether it can be read."""

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nsa_lab.config import load_saved_config
from nsa_lab.config.sizes import RUN_CONFIG
from nsa_lab.errors import NsaLabError
from nsa_lab.files import SUMMARY
from nsa_lab.model.sharded import Scattered, changed_in, changed_part, is_sharded, read_rest, read_tensors, scattered

CHECKPOINTS = "checkpoints"
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
WEIGHTS = "state_dict"
PARTS = {
    WEIGHTS: dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "loops": dict,
    "callbacks": dict,
    "global_step": int,
    "epoch": int,
    "pytorch-lightning_version": str,
}
"""What a checkpoint of Lightning's holds that a run can go on from."""
CHECKED = 1 << 30
"""Bytes of a checkpoint that is read once more to compare its sums: half a second of a core, less than to load it."""
FILLED = (WEIGHTS, "optimizer_states", "lr_schedulers", "loops")
OURS = "model."
"""Where the model stands in the Lightning module that wrote the checkpoint."""


def last_weights(run: Path) -> dict[str, Tensor]:
    """The model's weights in the last checkpoint of the folder `run`, on the CPU.

    Raises NsaLabError where there is none, or it is damaged.
    """
    checkpoint = _last_checkpoint(run)
    if is_sharded(checkpoint):
        return _of_the_model(read_tensors(checkpoint, WEIGHTS)[WEIGHTS])
    return _of_the_model(_mapped(checkpoint))


def stored_weights(run: Path) -> dict[str, Tensor | Scattered]:
    """As `last_weights`, but on the disk until rows of a weight are read: `weight[rows]`, `weight[...]`."""
    checkpoint = _last_checkpoint(run)
    return _of_the_model(scattered(checkpoint, WEIGHTS) if is_sharded(checkpoint) else _mapped(checkpoint))


def _last_checkpoint(run: Path) -> Path:
    checkpoint = find_checkpoint(run / CHECKPOINTS)
    if checkpoint is None:
        raise NsaLabError(f"{run / CHECKPOINTS / LAST} does not exist; {_where_weights_are(run)}")
    check_readable(checkpoint)
    return checkpoint


def _mapped(checkpoint: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)[WEIGHTS]
    return weights


def _of_the_model(weights: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(OURS): weight for name, weight in weights.items() if name.startswith(OURS)}


def _where_weights_are(run: Path) -> str:
    """What to do where `run` has none of its own."""
    config = load_saved_config(run / RUN_CONFIG)
    if config.training.steps or not (run / SUMMARY).exists():
        return f"train first: {shlex.join(['nsa-lab', 'train', str(run / RUN_CONFIG), '--dir', str(run)])}"
    if config.model.path is None:
        return "the run took no steps (training.steps=0) from random weights; train one with steps"
    return f"the run took no steps (training.steps=0); its weights are those of its model.path: {config.model.path}"


def find_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of `folder`, or None."""
    return next((folder / name for name in (LAST, PREVIOUS) if (folder / name).exists()), None)


def kept_checkpoint(folder: Path) -> str:
    """What is left to go on from, in words."""
    checkpoint = find_checkpoint(folder)
    return f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet"


def check_readable(checkpoint: Path) -> int:
    """The optimiser step of a checkpoint.

    Raises NsaLabError where the file is truncated or otherwise than it was written (of one up to CHECKED), lacks a
    part, or holds anything but tensors and plain data: a pickle of more could run code.
    """
    load: Callable[..., Any] = torch.load
    try:
        if is_sharded(checkpoint):
            step = int(read_rest(checkpoint)["global_step"])
            _check_sums(checkpoint)
            return step
        # Mapped, so that only the tables are read.
        content = load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        wrong = [key for key, kind in PARTS.items() if not isinstance(content.get(key), kind)]
        if wrong := wrong or [key for key in FILLED if not content[key]]:
            raise ValueError(f"no {', '.join(wrong)}")
        if not all(isinstance(weight, Tensor) for weight in content[WEIGHTS].values()):
            raise ValueError("weights that are no tensors")
        _check_sums(checkpoint)
        return int(content["global_step"])
    except Exception as error:
        earlier = checkpoint.with_name(PREVIOUS)
        back = (
            f"go back one with `mv {earlier} {checkpoint}`, or " if earlier.exists() and earlier != checkpoint else ""
        )
        reason = " ".join(str(error).split())[:120]
        raise NsaLabError(
            f"checkpoint {checkpoint} is damaged or holds more than tensors and plain data, which could run code "
            f"({type(error).__name__}: {reason}); {back}start over with training.resume=false"
        ) from error


def _check_sums(checkpoint: Path) -> None:
    """Raise ValueError where a part does not have the sum that torch wrote beside it, and does not read."""
    files, find = (checkpoint.iterdir(), changed_in) if is_sharded(checkpoint) else ([checkpoint], changed_part)
    if sum(file.stat().st_size for file in files) <= CHECKED and (changed := find(checkpoint)):
        raise ValueError(f"{changed} is not as it was written")
