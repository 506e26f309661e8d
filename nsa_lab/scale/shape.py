"""The model of a config without its weights: parameters by part, and the widths that memory and FLOPs follow from."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nsa_lab.config import ExperimentConfig, is_run, shape_source
from nsa_lab.config.sizes import SIZES, ModelSize, decoder_layers
from nsa_lab.data import load_tokenizer
from nsa_lab.data.tokenizer import OFFLINE
from nsa_lab.errors import NsaLabError
from nsa_lab.layout import MERGE
from nsa_lab.model import VideoNSAForConditionalGeneration
from nsa_lab.model.checkpoint import bare_model
from nsa_lab.model.config import VideoNSAConfig, config_from_size
from nsa_lab.plugin import settings, switched_on

PARTS = {
    "vision tower": "visual.",
    "merger": "visual.merger.",
    "embeddings": "embed_tokens.",
    "output head": "lm_head.",
    "gates": ".gate.",
    "compressors": ".compressor.",
    "scorers": ".scorer.",
    "partitioners": "partitions.",
    "reducer": "reducer.",
    "language model": "",
}
"""Parts of the model by what stands in their weights' names; the longest that does counts."""


def meta_model(config: ExperimentConfig) -> VideoNSAForConditionalGeneration:
    """The model of `config` on the meta device. Raises NsaLabError where its shape cannot be known without a network.

    A hub id says its shape by its name (...-7B-...): nothing is downloaded for a plan.
    """
    tokenizer = load_tokenizer(OFFLINE, Path(config.data.cache_dir))
    path = config.model.path
    with torch.device("meta"):
        if path is None or is_run(path) or Path(path).is_dir():
            return bare_model(config, tokenizer)
        named = config_from_size(_by_name(path), tokenizer, config.attention, config.data.positions)
        return VideoNSAForConditionalGeneration(named)


def _by_name(path: str) -> ModelSize:
    found = re.search(r"-(\d+b)\b", path.lower())
    if found is None or found[1] not in SIZES:
        known = ", ".join(SIZES)
        raise NsaLabError(
            f"model.path={path} is no folder here and its name ends in no known size ({known}); "
            "give model.path=null model.size=SIZE"
        )
    return SIZES[found[1]]


def layers_of(config: ExperimentConfig) -> int:
    """Decoder layers of the model of `config`. Raises NsaLabError as `meta_model`."""
    shape = shape_source(config.model)
    return decoder_layers(shape) or _by_name(str(shape.path)).num_layers


@dataclass(frozen=True)
class Widths:
    """The numbers of a model that memory and FLOPs follow from. `patches`: vision patches of one video token."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    groups: int
    head_dim: int
    vocabulary: int
    vision_hidden: int
    vision_intermediate: int
    vision_layers: int
    vision_full: int
    vision_heads: int
    window_patches: int
    patch_inputs: int
    patches: int = MERGE**2

    @classmethod
    def of(cls, config: VideoNSAConfig) -> "Widths":
        text, vision = config.text_config, config.vision_config
        return cls(
            hidden=text.hidden_size,
            intermediate=text.intermediate_size,
            layers=text.num_hidden_layers,
            heads=text.num_attention_heads,
            groups=text.num_key_value_heads,
            head_dim=text.hidden_size // text.num_attention_heads,
            vocabulary=text.vocab_size,
            vision_hidden=vision.hidden_size,
            vision_intermediate=vision.intermediate_size,
            vision_layers=vision.depth,
            vision_full=len(vision.fullatt_block_indexes),
            vision_heads=vision.num_heads,
            window_patches=(vision.window_size // vision.patch_size) ** 2,
            patch_inputs=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
        )


def parameters(model: Any) -> dict[str, int]:
    """Parameters by part; a tied output head is counted once, among the embeddings."""
    counts = dict.fromkeys(PARTS, 0)
    for name, weight in model.named_parameters():
        counts[part_of(name)] += weight.numel()
    return {part: count for part, count in counts.items() if count}


def part_of(name: str) -> str:
    """The part that a weight belongs to."""
    return max((part for part, mark in PARTS.items() if mark in name), key=lambda part: len(PARTS[part]))


def branches_of(design: Any) -> tuple[str, ...]:
    """The branches of a layer's design that are on; none where its method has none."""
    own = settings(design, "method")
    return tuple(switched_on(own.branches)) if hasattr(own, "branches") else ()
