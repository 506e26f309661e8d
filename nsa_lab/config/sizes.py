"""Model shapes by name. The proxies train on a laptop; from `3b` on they are Qwen2.5-VL's own.

A proxy starts with weights of about 1 / sqrt(hidden size): at Qwen's 0.02 a width of 64 stays at chance for hundreds of
steps. It has four layers or more, because video rows of the last layer reach no answer: its branches learn nothing.
"""

import dataclasses
import difflib
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nsa_lab.config.schema import ModelConfig
from nsa_lab.errors import nearest

RUN_CONFIG = "config.yaml"


@dataclass(frozen=True)
class ModelSize:
    """The numbers that make one Qwen2.5-VL of a given size; `vocab_size` None takes the tokenizer's."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vision_hidden_size: int
    vision_intermediate_size: int
    vision_layers: int
    vision_heads: int
    vision_full_attention: tuple[int, ...]
    tie_word_embeddings: bool
    rope_theta: float = 1_000_000.0
    initializer_range: float = 0.02
    vocab_size: int | None = None

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


SIZES: dict[str, ModelSize] = {
    "nano": ModelSize(64, 192, 4, 4, 2, 64, 128, 1, 2, (0,), True, rope_theta=1e4, initializer_range=0.125),
    "micro": ModelSize(128, 384, 6, 4, 2, 64, 128, 2, 2, (1,), True, rope_theta=1e4, initializer_range=0.09),
    "mini": ModelSize(256, 768, 8, 8, 2, 128, 256, 2, 4, (1,), True, rope_theta=1e4, initializer_range=0.0625),
    "3b": ModelSize(2048, 11008, 36, 16, 2, 1280, 3420, 32, 16, (7, 15, 23, 31), True, vocab_size=151936),
    "7b": ModelSize(3584, 18944, 28, 28, 4, 1280, 3420, 32, 16, (7, 15, 23, 31), False, vocab_size=152064),
    # Text as Qwen2.5's of that size (transformers' defaults are the 72B's). That the vision MLP is 3,456 wide above 7B
    # was read off a public copy of the 32B's config.json; no file of Qwen's own could be fetched here.
    "32b": ModelSize(5120, 27648, 64, 40, 8, 1280, 3456, 32, 16, (7, 15, 23, 31), False, vocab_size=152064),
    "72b": ModelSize(8192, 29568, 80, 64, 8, 1280, 3456, 32, 16, (7, 15, 23, 31), False, vocab_size=152064),
}


def model_size(config: ModelConfig) -> ModelSize:
    """The shape that `config` asks for: the named size with the fields it overrides."""
    overrides = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(ModelSize)
        if getattr(config, field.name, None) is not None
    }
    size = dataclasses.replace(SIZES[config.size], **overrides)
    if size.vision_layers != SIZES[config.size].vision_layers:
        size = dataclasses.replace(size, vision_full_attention=(size.vision_layers - 1,))
    return size


def is_run(path: str | None) -> bool:
    """Whether `path`, as model.path names it, is the folder of a run rather than one of weights or a hub id."""
    return path is not None and os.path.isfile(os.path.join(path, RUN_CONFIG))


def no_such_folder(path: str) -> str | None:
    """What to say of a `path` that does not exist and cannot be a hub id, with the run or weights nearest to it.

    A hub id is `owner/name` or a name; it is taken for a mistyped folder where its owner is a folder here, or where a
    run here is called nearly so.
    """
    place = Path(path)
    if os.path.exists(path):
        return None
    beside = {str(file.parent) for file in _weights_below(place.parent)}
    alike = difflib.get_close_matches(path, sorted(beside | _runs_here()), n=1, cutoff=0.8)
    owned = place.parent != Path() and os.path.isdir(place.parent)
    if not (alike or owned or place.is_absolute() or path.startswith((".", "~")) or len(place.parts) > 2):
        return None
    hint = f"did you mean {alike[0]!r}? " if alike else nearest(path, beside)
    return f"{path} does not exist; {hint}give the folder of a run or of weights, or a hub id"


def _weights_below(folder: Path) -> Iterator[Path]:
    return itertools.chain(*(folder.glob(f"*/{name}") for name in (RUN_CONFIG, "config.json")))


def _runs_here() -> set[str]:
    return {str(file.parent) for pattern in ("*", "*/*") for file in Path().glob(f"{pattern}/{RUN_CONFIG}")}


def decoder_layers(config: ModelConfig) -> int | None:
    """How many decoder layers the model has; None where a checkpoint is to say so that is in no folder here."""
    if config.path is None:
        return model_size(config).num_layers
    try:
        stored = json.loads((Path(config.path) / "config.json").read_text())
        return int((stored.get("text_config") or stored)["num_hidden_layers"])
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return None  # whoever loads it says what is wrong with it
