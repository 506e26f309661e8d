"""Load and build models: a fresh one by size, Qwen2.5-VL's weights with fresh gates, or a checkpoint of our own."""

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nsa_lab.config import (
    AttentionConfig,
    ExperimentConfig,
    attention_from_dict,
    is_run,
    load_saved_config,
    shape_source,
)
from nsa_lab.config.load import RUN_CONFIG
from nsa_lab.config.rules import beyond_the_last_layer
from nsa_lab.config.schema import ModelConfig
from nsa_lab.config.sizes import model_size, no_such_folder
from nsa_lab.data.positions import CONTINUED
from nsa_lab.errors import ConfigError, NsaLabError, first_line
from nsa_lab.model.config import (
    TOKENS_PER_SECOND,
    VideoNSAConfig,
    config_from_size,
    get_design,
    published_design,
    set_design,
)
from nsa_lab.model.decoder import is_plugged_in, plugged_in
from nsa_lab.model.fresh import random_model, weights_dtype
from nsa_lab.model.gates import with_gates_of
from nsa_lab.model.quiet import without_report
from nsa_lab.model.sharded import Scattered
from nsa_lab.model.trained import stored_weights
from nsa_lab.model.video_nsa import VideoNSAForConditionalGeneration

SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
"""Settings without which transformers builds a model of a size of its own."""

log = logging.getLogger(__name__)


def build_model(
    config: ExperimentConfig, tokenizer: Any, device: torch.device | None = None
) -> VideoNSAForConditionalGeneration:
    """The model that `config` asks for: `model.path` (a run, a folder or hub id of weights) loaded, or a random one.

    Its weights are float32, unless training.precision is bf16-true: small steps are lost in bfloat16. It is on the CPU,
    or where `random_model` draws it. Raises as `load_model`.
    """
    path = config.model.path
    if path is not None and not is_run(path):
        return load_model(path, config.attention, weights_dtype(config.training), config.data.positions)
    model = random_model(bare_config(config, tokenizer), config.training, device)
    if path is not None:
        take_weights(model, Path(path))
    return model


def bare_model(config: ExperimentConfig, tokenizer: Any) -> VideoNSAForConditionalGeneration:
    """The model that `config` asks for with random weights, in float32 on the CPU; model.path gives only its shape.

    Raises NsaLabError.
    """
    return VideoNSAForConditionalGeneration(bare_config(config, tokenizer))


def bare_config(config: ExperimentConfig, tokenizer: Any) -> VideoNSAConfig:
    """Shape and design of the model that `config` asks for. Raises NsaLabError."""
    shape, positions = shape_source(config.model), config.data.positions
    if shape.path is None:
        return config_from_size(model_size(shape), tokenizer, config.attention, positions)
    return _read_config(shape.path, config.attention, positions)


def take_weights(model: VideoNSAForConditionalGeneration, run: Path) -> None:
    """Put the last weights of the folder `run` into `model`; raises as `load_model`."""
    own = model.state_dict()
    for name, weight in run_weights(model, own, run).items():
        own[name].copy_(weight[...])


def run_weights(
    model: VideoNSAForConditionalGeneration, own: Mapping[str, Tensor], run: Path
) -> dict[str, Tensor | Scattered]:
    """The last weights of the folder `run` that have a place in `model`, yet to be read; `own` are its weights so far.

    Gates keep the columns of the branches that both have, whatever other branches there are; of another kind they start
    fresh. Raises as `load_model`.
    """
    trained = load_saved_config(run / RUN_CONFIG).attention
    weights = with_gates_of(model, own, stored_weights(run), get_design(model.config.text_config), trained)
    other = [name for name, weight in weights.items() if name in own and own[name].shape != weight.shape]
    check_fit(model, run, own.keys() - weights.keys(), weights.keys() - own.keys(), other)
    return {name: weight for name, weight in weights.items() if name in own}


def load_model(
    path: str | Path,
    attention: AttentionConfig | None = None,
    dtype: torch.dtype | str = "auto",
    positions: str | None = None,
) -> VideoNSAForConditionalGeneration:
    """A model from a folder or hub id that holds Qwen2.5-VL or VideoNSA weights.

    `attention` is the design to run, `positions` its data.positions; without them those that the weights were trained
    with. What plug-ins own (gates, compressors, routers) and the checkpoint does not have starts fresh; that is said,
    and so are positions other than the checkpoint's. Raises NsaLabError where the checkpoint cannot be read, or any
    other weight is missing, unexpected or of another shape.
    """
    config = _read_config(path, attention, positions)
    with readable(path), without_report():  # `check_fit` says what it would
        model, info = VideoNSAForConditionalGeneration.from_pretrained(
            str(path), config=config, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    mismatched = [str(key[0]) for key in info["mismatched_keys"]]
    check_fit(model, path, info["missing_keys"], info["unexpected_keys"], mismatched)
    return model


@contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Turn whatever the block finds damaged in the weights at `path` into an NsaLabError."""
    try:
        yield
    except NsaLabError:
        raise
    except Exception as error:  # transformers and safetensors say in many ways that a file is damaged
        raise NsaLabError(
            f"model.path={path} cannot be loaded: {_reason(error)}; check the folder's weights"
        ) from error


def check_fit(
    model: VideoNSAForConditionalGeneration,
    path: str | Path,
    missing: Collection[str],
    unexpected: Collection[str],
    mismatched: Collection[str],
) -> None:
    """Raise NsaLabError where weights other than plug-ins' lack or are too many, or any has another shape.

    Plug-ins' weights that lack start fresh, and those that this design has no use for are left; both are said.
    """
    own = tuple(f"model.language_model.{name}." for name in plugged_in(model.model.language_model))
    fresh = sorted(key for key in missing if key.startswith(own))
    left = sorted(key for key in unexpected if is_plugged_in(key))
    wrong = {
        "missing": sorted(key for key in missing if not key.startswith(own)),
        "unexpected": sorted(set(unexpected) - set(left)),
        "of another shape": sorted(mismatched),
    }
    faults = [f"{len(keys)} {kind} (such as {keys[0]})" for kind, keys in wrong.items() if keys]
    if faults:
        raise NsaLabError(
            f"model.path={path} does not fit the model: weights {'; '.join(faults)}; check model and attention"
        )
    if fresh:
        some = f"{len(fresh)} weights of plug-ins (such as {fresh[0]})"
        log.warning("%s: %s are not in the checkpoint and start fresh", path, some)
    if left:
        log.warning("%s: this design has no use for %d weights of plug-ins (such as %s)", path, len(left), left[0])


def stored_design(path: str | Path) -> dict[str, Any]:
    """The settings of `attention` stored with the weights at `path`, empty where there are none. Raises NsaLabError."""
    return _design(path, _stored(path)) or {}


def stored_positions(path: str | Path) -> str:
    """data.positions that the weights at `path` were trained with; Qwen's do not say so. Raises NsaLabError."""
    return _positions(path, _stored(path))


def tokens_per_second(model: ModelConfig) -> float:
    """How many time ids of M-RoPE a second has in the model of these settings. Raises NsaLabError as `load_model`."""
    path = shape_source(model).path
    if path is None:
        return TOKENS_PER_SECOND
    return float(_typed(path, _stored(path)).vision_config.tokens_per_second)


def _positions(path: str | Path, stored: dict[str, Any]) -> str:
    ours = stored.get("model_type") == VideoNSAConfig.model_type  # saved when there was but one way
    positions = stored.get("positions", "transformers" if ours else "qwen")
    if positions not in CONTINUED:
        raise NsaLabError(
            f"model.path={path} says positions={positions!r} in its config.json; correct it to {' or '.join(CONTINUED)}"
        )
    return str(positions)


def _stored(path: str | Path) -> dict[str, Any]:
    if fault := no_such_folder(str(path)):
        raise NsaLabError(f"model.path: {fault}")
    try:
        stored, _ = VideoNSAConfig.get_config_dict(str(path))
    except (OSError, ValueError) as error:
        raise NsaLabError(
            f"model.path={path} cannot be read: {_reason(error)}; give a local folder, or a hub id while online"
        ) from error
    except (TypeError, AttributeError) as error:
        raise NsaLabError(f"model.path={path}: its config.json is no object; get it again") from error
    return dict(stored)


def _typed(path: str | Path, stored: dict[str, Any]) -> VideoNSAConfig:
    text, vision = (stored.get(part) for part in ("text_config", "vision_config"))
    text = stored if text is None else text  # Qwen's own files have no text_config
    if not isinstance(text, dict) or not isinstance(vision, dict) or any(key not in text for key in SHAPE):
        raise NsaLabError(
            f"model.path={path}: its config.json lacks {', '.join(SHAPE)} or a vision_config; get it again"
        )
    try:
        return VideoNSAConfig.from_dict(stored)
    except Exception as error:  # transformers checks each setting in its own way
        raise NsaLabError(f"model.path={path}: its config.json is no model's: {_reason(error)}") from error


def _read_config(path: str | Path, attention: AttentionConfig | None, positions: str | None) -> VideoNSAConfig:
    stored = _stored(path)
    kind = stored.get("model_type")
    if kind not in ("qwen2_5_vl", VideoNSAConfig.model_type):
        raise NsaLabError(f"model.path={path} holds a {kind!r} model; only Qwen2.5-VL and VideoNSA weights fit")
    stored["model_type"] = VideoNSAConfig.model_type
    trained = _positions(path, stored)
    if positions not in (None, trained):
        log.warning(
            "%s was trained with data.positions=%s and is used with %s; set data.positions=%s to go on as before",
            *(path, trained, positions, trained),
        )
    config = _typed(path, stored | {"positions": positions or trained})
    design = _design(path, stored)
    if attention is not None:
        if design and attention.method != design.get("method", attention.method):
            log.warning(
                "%s was trained with attention.method=%s and is used with %s; set attention.method=%s to go on",
                *(path, design["method"], attention.method, design["method"]),
            )
        if beyond := list(beyond_the_last_layer(attention, config.text_config.num_hidden_layers)):
            raise ConfigError(beyond)
        set_design(config, attention)
    elif design:
        set_design(config, attention_from_dict(design))
    else:
        raise NsaLabError(
            f"model.path={path} stores no attention design; pass one (the `attention` section of a config)"
        )
    return config


def _design(path: str | Path, stored: dict[str, Any]) -> dict[str, Any] | None:
    """The design in a config.json: ours before the published fields, which stay when such weights are saved again."""
    text_config = stored.get("text_config")
    if not isinstance(text_config, dict):
        return None
    if ours := text_config.get("video_nsa"):
        return dict(ours)
    try:
        return published_design(text_config)
    except ValueError as error:
        raise NsaLabError(f"model.path={path}: text_config.{error} in its config.json; get it again") from error


def _reason(error: Exception) -> str:
    return first_line(error)[:200]
