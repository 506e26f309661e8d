"""The Python API; `nsa_lab` exports it."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nsa_lab.analysis.pictures import draw_run
from nsa_lab.config import ExperimentConfig, flatten, load_config
from nsa_lab.config.load import parse_overrides
from nsa_lab.data import load_tokenizer
from nsa_lab.evaluation import ask, evaluate, score
from nsa_lab.model import VideoNSAForConditionalGeneration
from nsa_lab.model.checkpoint import build_model as build_with
from nsa_lab.model.checkpoint import load_model as load_weights
from nsa_lab.model.checkpoint import stored_design, stored_positions
from nsa_lab.model.layer import SparseAttention
from nsa_lab.training import RunResult, run
from nsa_lab.training.restore import restore_model

__all__ = ["SparseAttention", "ask", "build_model", "evaluate", "load_config", "load_model", "score", "train"]


def build_model(config: ExperimentConfig) -> VideoNSAForConditionalGeneration:
    """The model that `config` describes: its weights loaded (model.path) or random. Raises NsaLabError."""
    model = build_with(config, load_tokenizer(config.data.tokenizer, Path(config.data.cache_dir)))
    model.experiment = config
    return model


def load_model(path: str | Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> VideoNSAForConditionalGeneration:
    """A trained model, ready to ask: `path` is a run directory of nsa-lab, or a folder or hub id of weights.

    `overrides` change the run's config, or the design and data.positions stored with the weights, where the weights
    still fit; weights of Qwen2.5-VL get the defaults. What data.drop left out of a training is no matter here, unless
    it is an override. Of weights `data.tokenizer` is `path` unless named. Raises NsaLabError where nothing can be
    loaded.
    """
    given = dict(overrides) if isinstance(overrides, Mapping) else parse_overrides(overrides)
    if (Path(path) / "config.yaml").is_file():
        config, model = restore_model(Path(path), given)
        if "data.drop" not in given:
            config = dataclasses.replace(config, data=dataclasses.replace(config.data, drop=None))
    else:
        # A task makes the config complete.
        base = {"tasks.needle.enabled": True, "model.path": str(path), "data.tokenizer": str(path)}
        stored = {"attention": stored_design(path), "data.positions": stored_positions(path)}
        config = load_config(None, base | flatten(stored) | given)
        model = load_weights(path, config.attention, positions=config.data.positions)
    model.experiment = config
    return model.eval()


def train(
    config: ExperimentConfig | str | Path, overrides: Sequence[str] | Mapping[str, Any] = (), **options: Any
) -> RunResult:
    """Train a config, or the YAML of one with overrides; go on where an earlier run of it ended.

    `options` are those of `nsa_lab.training.run`: directory, tags, on_progress, progress_bar. At its end its pictures
    are drawn. Raises NsaLabError.
    """
    experiment = config if isinstance(config, ExperimentConfig) else load_config(config, overrides)
    return run(experiment, draw=draw_run, **options)
