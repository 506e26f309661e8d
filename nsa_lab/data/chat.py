"""Turns to token ids in Qwen2.5-VL's chat template, with the video's placeholder at its true length."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nsa_lab.data.errors import RESERVED, BadSampleError
from nsa_lab.data.rows import Turn

IGNORED = -100
VIDEO_TOKEN = "<|video_pad|>"
MARKS = ("<|vision_start|>", "<|vision_end|>")
"""Before and after each stretch of vision tokens."""


@dataclass(frozen=True)
class Chat:
    """input_ids, labels (-100 outside answers) and answer_index (turn of an answer, else -1), each [L] int64."""

    input_ids: Tensor
    labels: Tensor
    answer_index: Tensor


def encode_chat(turns: Sequence[Turn], vision: Sequence[int], tokenizer: Any, system_prompt: str) -> Chat:
    """The conversation about a video, which precedes the first question, in stretches of `vision` tokens.

    Answers and the <|im_end|> that closes each are labelled; an answer of None ends the conversation there. An empty
    `system_prompt` writes no system turn.
    Raises BadSampleError where a text contains one of the tokenizer's reserved tokens.
    """
    _check_texts([system_prompt, *(t for turn in turns for t in (turn.question, turn.answer or ""))], tokenizer)
    ids: list[int] = []
    answers: list[int] = []

    def add(text: str, answer: int = -1) -> None:
        piece = tokenizer.encode(text, add_special_tokens=False)
        ids.extend(piece)
        answers.extend([answer] * len(piece))

    if system_prompt:
        add(f"<|im_start|>system\n{system_prompt}<|im_end|>\n")
    for number, turn in enumerate(turns):
        add("<|im_start|>user\n")
        if number == 0:
            ids += _marked(vision, tokenizer)
            answers += [-1] * (len(ids) - len(answers))
        add(f"{turn.question}<|im_end|>\n<|im_start|>assistant\n")
        if turn.answer is None:
            break
        add(f"{turn.answer}<|im_end|>", answer=number)
        add("\n")
    input_ids, answer_index = torch.tensor(ids), torch.tensor(answers)
    return Chat(input_ids, torch.where(answer_index >= 0, input_ids, IGNORED), answer_index)


def _marked(vision: Sequence[int], tokenizer: Any) -> list[int]:
    """Each stretch of vision tokens between its two marks."""
    begin, end, pad = (tokenizer.convert_tokens_to_ids(token) for token in (*MARKS, VIDEO_TOKEN))
    return [token for count in vision for token in (begin, *[pad] * count, end)]


def _check_texts(texts: Sequence[str], tokenizer: Any) -> None:
    reserved = [token for token in tokenizer.get_added_vocab() if any(token in text for text in texts)]
    if reserved:
        raise BadSampleError(f"its text contains the reserved token {reserved[0]}; remove it from the text", RESERVED)
