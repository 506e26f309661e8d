"""Tokenizers: a small offline one with Qwen's special tokens for the proxies, or any hub id or folder."""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from nsa_lab.errors import NsaLabError, first_line
from nsa_lab.files import whole
from nsa_lab.tasks.words import WORDS

OFFLINE = "offline"
END_OF_TEXT = "<|endoftext|>"
SPECIAL_TOKENS = (
    END_OF_TEXT,
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
NEEDED_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
MAX_VOCABULARY = 1000

# Same output as Qwen2.5-VL's template for text, images and videos.
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{%- if loop.first and message['role'] != 'system' %}"
    "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{%- endif %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['content'] is string %}"
    "{{- message['content'] }}"
    "{%- else %}"
    "{%- for part in message['content'] %}"
    "{%- if part['type'] == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif part['type'] == 'video' %}{{- '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{%- else %}{{- part['text'] }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- endif %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def load_tokenizer(name: str, cache_dir: Path) -> Any:
    """The tokenizer `name`: "offline", a folder or a hub id. The offline one is built once and kept in `cache_dir`.

    Raises NsaLabError where it cannot be loaded or lacks one of Qwen2.5-VL's special tokens.
    """
    if name == OFFLINE:
        return _from_pretrained(str(_offline_folder(Path(cache_dir))))
    tokenizer = _from_pretrained(name)
    known = tokenizer.get_vocab()
    lacking = [token for token in NEEDED_TOKENS if token not in known]
    if lacking:
        raise NsaLabError(
            f"tokenizer {name} has no {', '.join(lacking)}; data.tokenizer must be a Qwen2.5-VL tokenizer or 'offline'"
        )
    return tokenizer


def _from_pretrained(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:  # a damaged file shows in many ways
        reason = first_line(error)
        raise NsaLabError(
            f"tokenizer {name} cannot be loaded: {reason}; set data.tokenizer to a folder, a hub id or 'offline'"
        ) from error


def _offline_folder(cache_dir: Path) -> Path:
    """The cached tokenizer's folder, built beside it and moved in whole, so that parallel first uses are safe."""
    folder = cache_dir / f"tokenizer-{_recipe_hash()}"
    if folder.is_dir():
        return folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    try:
        with whole(folder) as building:
            _build().save_pretrained(building)
    except OSError:
        if not folder.is_dir():  # another process was first
            raise
    return folder


@functools.cache
def _recipe_hash() -> str:
    recipe = json.dumps([SPECIAL_TOKENS, CHAT_TEMPLATE, WORDS, MAX_VOCABULARY])
    return hashlib.sha256(recipe.encode()).hexdigest()[:12]


def _build() -> Any:
    """Byte-level BPE in which every one of WORDS, alone or after a space, is one token."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer
    from transformers import Qwen2Tokenizer

    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    trainer = BpeTrainer(
        vocab_size=MAX_VOCABULARY - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator([text for word in WORDS for text in (word, f" {word}")], trainer)
    model = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        eos_token="<|im_end|>",
        pad_token=END_OF_TEXT,
        extra_special_tokens=[token for token in SPECIAL_TOKENS if token not in ("<|im_end|>", END_OF_TEXT)],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
