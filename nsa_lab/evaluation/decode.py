"""Greedy answers to several prompts at once: one prefill, then a token a step from the cache."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from nsa_lab.data import Example
from nsa_lab.model import VideoNSAForConditionalGeneration


@torch.no_grad()
def greedy(
    model: VideoNSAForConditionalGeneration,
    examples: Sequence[Example],
    end: int,
    count: int,
    prefill_chunk: int | None = None,
) -> list[list[int]]:
    """The token ids that follow each example, until `end` (left out) or `count` of them.

    prefill_chunk: the prompts are read about so many tokens at a time, in less memory.

    Video tokens are never written: a cache takes none. Each answer is that of its example alone, but for float
    rounding.
    """
    was_training = model.training
    try:
        return _decode(model.eval(), prompts(model, examples), end, count, prefill_chunk)
    finally:
        model.train(was_training)


def prompts(model: VideoNSAForConditionalGeneration, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """The examples `left_padded`, as `model` takes them."""
    inputs = {name: value.to(model.device) for name, value in left_padded(examples).items()}
    return inputs | {"pixel_values_videos": inputs["pixel_values_videos"].to(model.dtype)}


def left_padded(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """A row each, L the longest: input_ids, attention_mask, mm_token_type_ids [B, L], position_ids [3, B, L] int64, and
    all videos' pixel_values_videos [P, 1176] and video_grid_thw [B, 3].

    Rows and not one packed row, since a packed batch keeps no cache; the model packs them itself.
    """
    longest = max(len(example.input_ids) for example in examples)
    missing = [longest - len(example.input_ids) for example in examples]

    def rows(name: str) -> torch.Tensor:
        return torch.stack([F.pad(getattr(e, name), (n, 0)) for e, n in zip(examples, missing, strict=True)])

    return {
        "input_ids": rows("input_ids"),
        "attention_mask": (torch.arange(longest) >= torch.tensor(missing)[:, None]).long(),
        "mm_token_type_ids": rows("token_types"),
        "position_ids": rows("position_ids").transpose(0, 1),
        "pixel_values_videos": torch.cat([example.pixel_values for example in examples]),
        "video_grid_thw": torch.cat([example.grid_thw for example in examples]),
    }


def _decode(model: Any, inputs: dict[str, torch.Tensor], end: int, count: int, chunk: int | None) -> list[list[int]]:
    """Text goes on one position after the prompt's last token."""
    out = model(**inputs, use_cache=True, logits_to_keep=1, prefill_chunk=chunk)
    place, mask = inputs["position_ids"][:, :, -1:], inputs["attention_mask"]
    ids: list[list[int]] = [[] for _ in mask]
    writing = set(range(len(ids)))
    for number in range(1, count + 1):
        logits = out.logits[:, -1]
        logits[:, model.config.video_token_id] = -torch.inf
        tokens = logits.argmax(-1)
        found = tokens.tolist()
        writing = {row for row in writing if found[row] != end}
        for row in writing:
            ids[row].append(found[row])
        if not writing or number == count:
            break
        place, mask = place + 1, F.pad(mask, (0, 1), value=1)
        given = {"input_ids": tokens[:, None], "attention_mask": mask, "position_ids": place}
        out = model(**given, past_key_values=out.past_key_values, use_cache=True)
    return ids
