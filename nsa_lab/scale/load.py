"""What one micro-batch of a training holds: samples of a video, a question and an answer."""

import math
from dataclasses import dataclass

import torch

from nsa_lab.config import ExperimentConfig
from nsa_lab.config.rules import clip_grids
from nsa_lab.layout import FRAMES_AS, TOKEN_PIXELS, TokenLayout, layout_from_token_ids

BEFORE = 16
"""Text tokens before a video: the system prompt. The others follow it."""
TEXT, ANSWER = 256, 64
VIDEO = 1


@dataclass(frozen=True)
class Load:
    """`samples` of `video_tokens` in frames of `frame_tokens` (a temporal patch), `text` tokens, `answer` of them
    labelled; `context` GPUs share them."""

    video_tokens: int
    frame_tokens: int
    text: int = TEXT
    answer: int = ANSWER
    samples: int = 1
    context: int = 1

    @property
    def keys(self) -> int:
        """Tokens of the micro-batch."""
        return self.samples * (self.video_tokens + self.text)

    @property
    def tokens(self) -> int:
        """Those of them that are one GPU's own."""
        return self._own(self.video_tokens + self.text)

    @property
    def video(self) -> int:
        return self._own(self.video_tokens)

    @property
    def text_rows(self) -> int:
        return self._own(self.text)

    @property
    def labelled(self) -> int:
        return self._own(self.answer)

    def _own(self, tokens: int) -> int:
        return -(-self.samples * tokens // self.context)

    def layout(self) -> TokenLayout:
        """One sample's tokens: the longest frames come as near to a square as they can."""
        rows = max(side for side in range(1, math.isqrt(self.frame_tokens) + 1) if self.frame_tokens % side == 0)
        grid = (self.video_tokens // self.frame_tokens, 2 * rows, 2 * self.frame_tokens // rows)
        before = min(BEFORE, self.text)
        ids = torch.zeros(1, self.video_tokens + self.text, dtype=torch.int64)
        ids[0, before : before + self.video_tokens] = VIDEO
        return layout_from_token_ids(ids, VIDEO, torch.tensor([grid]))


def load_of(config: ExperimentConfig, video_tokens: int | None = None, text: int = TEXT, answer: int = ANSWER) -> Load:
    """The micro-batch of `config`: the longest sample that its data settings allow, whole frames of it.

    `video_tokens` asks for another length, rounded up to whole frames. training.tokens_per_batch holds as many samples
    as go into it, one at least.
    """
    per_frame, longest = frame_and_clip(config)
    wanted = longest if video_tokens is None else video_tokens
    frames = max(1, -(-wanted // per_frame) if video_tokens else wanted // per_frame)
    training, sample = config.training, frames * per_frame
    budget = training.tokens_per_batch
    samples = training.batch_size if budget is None else max(1, budget // (sample + text))
    return Load(sample, per_frame, text, min(answer, text), samples, training.context_parallel)


def frame_and_clip(config: ExperimentConfig) -> tuple[int, int]:
    """Tokens of one temporal patch (two frames, or one image), and of the longest clip."""
    if clips := [(frames * size, size) for frames, size in clip_grids(config).values()]:
        longest, per_frame = max(clips)
        return per_frame, longest
    data = config.data
    per_frame = max(1, data.max_pixels // TOKEN_PIXELS**2)
    patches = data.max_frames // FRAMES_AS[data.frames_as]
    return per_frame, max(per_frame, min(data.max_tokens - TEXT, patches * per_frame))
