"""A trained run back from its directory: config, model with the last weights, data."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nsa_lab.config import ExperimentConfig, load_saved_config
from nsa_lab.config.load import parse_overrides
from nsa_lab.config.sizes import RUN_CONFIG
from nsa_lab.data import load_tokenizer
from nsa_lab.errors import NsaLabError
from nsa_lab.files import no_folder
from nsa_lab.model import VideoNSAForConditionalGeneration
from nsa_lab.model.checkpoint import bare_config
from nsa_lab.model.drawing import Drawing, Share
from nsa_lab.model.trained import CHECKPOINTS, find_checkpoint, last_weights
from nsa_lab.training.build import build_data, build_module
from nsa_lab.training.data import VideoDataModule
from nsa_lab.training.directory import RunDirectory
from nsa_lab.training.module import VideoModule


def restore(directory: Path) -> tuple[ExperimentConfig, VideoModule, VideoDataModule]:
    """The config, the model at its last checkpoint and the data of the run in `directory`, on the CPU in float32.

    Raises NsaLabError where there is no run, no checkpoint, or one that does not fit the config.
    """
    config = _config(directory)
    data, tokenizer = build_data(config)
    return config, _at_last_checkpoint(directory, config, tokenizer), data


def restore_model(
    directory: Path, overrides: Sequence[str] | Mapping[str, Any] = (), *, as_stored: bool = False
) -> tuple[ExperimentConfig, VideoNSAForConditionalGeneration]:
    """The config of the run in `directory` with `overrides`, and its model; raises as `restore`.

    `as_stored` leaves weights in the file and in its dtype: they are read when looked at, and change with it.
    """
    config = _config(directory, overrides)
    tokenizer = load_tokenizer(config.data.tokenizer, Path(config.data.cache_dir))
    return config, _at_last_checkpoint(directory, config, tokenizer, overrides, as_stored=as_stored).model


def _config(directory: Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> ExperimentConfig:
    home = RunDirectory(directory)
    if not home.config.is_file():
        what = "holds no run (no config.yaml)" if directory.is_dir() else no_folder(directory)
        raise NsaLabError(f"{directory} {what}; give the run directory that `nsa-lab train` printed")
    config = load_saved_config(home.config, overrides)
    if config.training.threads is not None:
        torch.set_num_threads(config.training.threads)
    return config


def _at_last_checkpoint(
    directory: Path,
    config: ExperimentConfig,
    tokenizer: Any,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    as_stored: bool = False,
) -> VideoModule:
    module = build_module(config, tokenizer, _shape)
    weights = last_weights(directory)
    if not as_stored:  # of its own, not the file's, which a training may write over
        weights = {
            name: weight.to(torch.float32, copy=True) if weight.is_floating_point() else weight.clone()
            for name, weight in weights.items()
        }
    try:
        module.model.load_state_dict(weights, assign=True)
        module.model.tie_weights()
    except RuntimeError as error:
        reason = textwrap.shorten(str(error), 200, placeholder=" ...")
        given = overrides if isinstance(overrides, Mapping) else parse_overrides(overrides)
        if other := [f"{key}={value}" for key, value in given.items() if key.startswith(("attention", "model"))]:
            raise NsaLabError(
                f"{', '.join(other)}: the weights of {directory} do not fit ({reason}); leave it off, train a run "
                f"so, or validate what fits of them: nsa-lab train CONFIG model.path={directory} training.steps=0"
            ) from error
        raise NsaLabError(
            f"{find_checkpoint(directory / CHECKPOINTS)} does not fit {directory / RUN_CONFIG} ({reason}); "
            "restore the config that the run was trained with"
        ) from error
    return module


def _shape(config: ExperimentConfig, tokenizer: Any) -> VideoNSAForConditionalGeneration:
    """The model of `config` with its parameters on the meta device: of 7B nothing is drawn, nor made twice."""
    with Drawing(Share(), torch.device("meta"), torch.float32):
        return VideoNSAForConditionalGeneration(bare_config(config, tokenizer))
