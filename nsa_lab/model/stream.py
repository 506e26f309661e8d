"""The model that one of several processes trains: on the meta device, with its own rows of each weight beside it.

No process ever holds all weights: what is stored is read row by row, what is random is drawn weight by weight.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from nsa_lab.config import ExperimentConfig, is_run
from nsa_lab.errors import NsaLabError
from nsa_lab.model.checkpoint import bare_config, check_fit, readable, run_weights
from nsa_lab.model.drawing import Drawing, Share
from nsa_lab.model.fresh import drawn_model, weights_dtype
from nsa_lab.model.gates import branch_weights
from nsa_lab.model.video_nsa import VideoNSAForConditionalGeneration
from nsa_lab.origin import training_device

Parts = dict[str, Tensor]


def model_in_parts(
    config: ExperimentConfig, tokenizer: Any, share: Share
) -> tuple[VideoNSAForConditionalGeneration, Parts]:
    """What `build_model` makes of `config`, on the meta device, and the `share` of its weights by name, for `fill`.

    Raises as `load_model`, and NsaLabError where model.path holds no safetensors.
    """
    path = config.model.path
    if path is not None and not is_run(path):
        return _stored(path, config, tokenizer, share)
    model, parts = drawn_model(bare_config(config, tokenizer), config.training, share)
    if path is not None:
        _take_parts(model, parts, Path(path), share)
    return model, parts


def _stored(
    path: str, config: ExperimentConfig, tokenizer: Any, share: Share
) -> tuple[VideoNSAForConditionalGeneration, Parts]:
    """Weights under Qwen2.5-VL's names or VideoNSA's; what plug-ins own and the files lack is drawn."""
    dtype, device = weights_dtype(config.training), training_device(config.training.accelerator)
    with torch.device("meta"):
        model = VideoNSAForConditionalGeneration._from_config(bare_config(config, tokenizer), dtype=dtype)
    own = dict(model.named_parameters())
    with readable(path), ExitStack() as files:
        found: dict[str, Any] = {}
        rename = _renamed(model)
        for file in _files(path):
            opened = files.enter_context(safe_open(file, "pt"))
            found |= {rename(key): opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118
        found = {name: stored for name, stored in found.items() if name not in model.all_tied_weights_keys}
        other = [name for name, stored in found.items() if name in own and stored.get_shape() != list(own[name].shape)]
        check_fit(model, path, own.keys() - found.keys(), found.keys() - own.keys(), other)
        parts = {name: _rows(found[name], share).to(device, dtype) for name in own if name in found}
    return model, parts | _fresh(model, {name: weight for name, weight in own.items() if name not in parts}, share)


def _take_parts(model: VideoNSAForConditionalGeneration, parts: Parts, run: Path, share: Share) -> None:
    """Put the last weights of the folder `run` in the place of `parts`."""
    own = model.state_dict()
    for name in branch_weights(model):
        rows = share.rows(len(own[name]))
        own[name] = torch.zeros_like(own[name], device="cpu")
        own[name][rows] = parts[name].to(own[name])
    for name, weight in run_weights(model, own, run).items():
        if name in parts:
            parts[name] = weight[share.rows(len(weight))].to(parts[name], copy=True)


def _files(path: str) -> list[str]:
    """The safetensors of a folder or hub id."""
    optional = {"_raise_exceptions_for_missing_entries": False}
    index = cached_file(path, SAFE_WEIGHTS_INDEX_NAME, **optional)
    if index is not None:
        return list(get_checkpoint_shard_files(path, index)[0])
    whole = cached_file(path, SAFE_WEIGHTS_NAME, **optional)
    if whole is None:
        raise NsaLabError(f"model.path={path} holds no safetensors, which several processes need; save it as such")
    return [whole]


def _renamed(model: VideoNSAForConditionalGeneration) -> Callable[[str], str]:
    """A function from a stored weight's name to its name in `model`: what transformers does when it loads one."""
    conversions, own, prefix = get_model_conversion_mapping(model), model.state_dict(), model.base_model_prefix
    assert all(isinstance(conversion, WeightRenaming) for conversion in conversions)

    def rename(key: str) -> str:
        name, _ = rename_source_key(key, conversions, [], prefix, own)
        return name if name in own or key not in own else key

    return rename


def _rows(stored: Any, share: Share) -> Tensor:
    """The `share` of a tensor in a file."""
    rows = share.rows(stored.get_shape()[0])
    return stored[rows] if rows.start < rows.stop else stored[:1][:0]


def _fresh(model: VideoNSAForConditionalGeneration, missing: Mapping[str, nn.Parameter], share: Share) -> Parts:
    """Start values of the `missing` weights, and the buffers of `model`, made as transformers makes them."""
    for name, buffer in list(model.named_buffers()):
        place, _, last = name.rpartition(".")
        setattr(model.get_submodule(place), last, torch.empty_like(buffer, device="cpu"))
    for name, parameter in model.named_parameters():
        parameter._is_hf_initialized = name not in missing  # type: ignore[attr-defined]
    with Drawing(share, torch.device("cpu"), model.dtype) as drawing:
        for parameter in missing.values():
            drawing.adopt(parameter)
        model.initialize_weights()
        return drawing.own_parts(model)
