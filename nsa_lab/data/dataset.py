"""Samples to examples: decode, sample frames, resize, patchify, tokenise."""

import functools
import itertools
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from nsa_lab.config.schema import DataConfig
from nsa_lab.data.annotations import Samples
from nsa_lab.data.chat import VIDEO_TOKEN, encode_chat
from nsa_lab.data.errors import KINDS, SKIPPED, BadSampleError, check_length, refuse_most
from nsa_lab.data.pixels import laid_out, resize, vision_tokens
from nsa_lab.data.positions import VIDEO, mrope_positions
from nsa_lab.data.rows import Sample
from nsa_lab.data.video import Clip, read_clip
from nsa_lab.errors import NsaLabError
from nsa_lab.layout import FRAMES_AS

logger = logging.getLogger(__name__)

GREY = 128


@dataclass(frozen=True)
class Example:
    """One sample as tensors: L tokens, P patches, one video, or V images (data.frames_as).

    input_ids, labels (-100 outside answers), answer_index (-1 or turn number), token_types (0 text, 2 video): [L]
    int64; position_ids [3, L] int64; pixel_values [P, 1176] float32; grid_thw [V, 3] int64.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    pixel_values: Tensor
    grid_thw: Tensor
    answer_index: Tensor
    task: str
    token_types: Tensor


class VideoDataset(Dataset):
    """Examples of `samples`, in order. Decoded frames are kept in memory up to `memory_cache_mib` over all workers.

    tokens_per_second is the model's (vision_config): the time ids of a second.

    A sample that cannot be used raises BadSampleError; with `on_bad_sample=skip` the next good one stands in, the
    first is told in a warning, `skipped()` counts them over all workers, and more than half of them is an error.
    """

    def __init__(self, samples: list[Sample], tokenizer: Any, config: DataConfig, tokens_per_second: float = 2.0):
        self.samples = samples
        self.left_out = samples.skipped if isinstance(samples, Samples) else {}
        self.tokenizer = tokenizer
        self.config = config
        self.tokens_per_second = tokens_per_second
        self._video_token = tokenizer.convert_tokens_to_ids(VIDEO_TOKEN)
        self._marks = torch.zeros(len(samples), dtype=torch.uint8).share_memory_()
        self._cache: dict[str, Clip] = {}
        self._cached_bytes = 0

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        for at in itertools.chain(range(index, len(self)), range(index)):
            if (example := self._usable(at)) is not None:
                return example
        raise NsaLabError("no sample can be used; see the warning above for the first reason")

    def usable(self, indices: Sequence[int]) -> list[Example]:
        """The examples of `indices` but for samples that cannot be used; where none can, the next good one alone."""
        found = [self._usable(index) for index in indices]
        return [example for example in found if example is not None] or [self[indices[0]]]

    def skipped(self) -> dict[str, int]:
        """How many samples were skipped so far, by reason, over all worker processes, with the rows left out before."""
        return dict(Counter(self._counts()) + Counter(self.left_out))

    def good(self) -> list[int]:
        """The numbers of the samples that were not skipped so far."""
        return (self._marks == 0).nonzero().flatten().tolist()

    def _usable(self, at: int) -> Example | None:
        """The example of the sample at `at`, None where it is skipped."""
        if self._marks[at]:
            return None
        try:
            return self.example(self.samples[at])
        except BadSampleError as error:
            named = error.of(self.samples[at].id)
            if self.config.on_bad_sample == "error":
                raise named from error
            self._skip(at, named)
        return None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cache": {}, "_cached_bytes": 0}

    def _counts(self) -> dict[str, int]:
        return {kind: int((self._marks == code).sum()) for code, kind in enumerate(KINDS, start=1)}

    def _skip(self, at: int, error: BadSampleError) -> None:
        self._marks[at] = KINDS.index(error.kind) + 1
        if int(self._marks.count_nonzero()) == 1:
            logger.warning(SKIPPED, error)
        refuse_most(self._counts(), len(self), error)

    def example(self, sample: Sample) -> Example:
        """`sample` as tensors. Raises BadSampleError where it cannot be used."""
        clip = self.clip(sample)
        frames = torch.full_like(clip.frames, GREY) if self.config.blind else clip.frames
        size = (len(frames), frames.shape[-2], frames.shape[-1])
        system = self.config.system_prompt if sample.system is None else sample.system
        chat = encode_chat(sample.turns, vision_tokens(*size, self.config.frames_as), self.tokenizer, system)
        check_length(len(chat.input_ids), size, {"data.max_tokens": self.config.max_tokens})
        pixel_values, grid_thw = laid_out(frames, self.config.frames_as)
        is_video, seconds = chat.input_ids == self._video_token, clip.seconds[:: FRAMES_AS[self.config.frames_as]]
        return Example(
            input_ids=chat.input_ids,
            labels=chat.labels,
            position_ids=mrope_positions(
                is_video, grid_thw, seconds, self.tokens_per_second, positions=self.config.positions
            ),
            pixel_values=pixel_values,
            grid_thw=grid_thw,
            answer_index=chat.answer_index,
            task=sample.task,
            token_types=is_video.long() * VIDEO,
        )

    def clip(self, sample: Sample) -> Clip:
        """The sample's clip, resized; kept while the budget lasts, since all are used once per epoch."""
        key = str(sample.video)
        if key in self._cache:
            return self._cache[key]
        fit = functools.partial(resize, min_pixels=self.config.min_pixels, max_pixels=self.config.max_pixels)
        clip = read_clip(sample.video, self.config.fps, self.config.max_frames, fit)
        if self._cached_bytes + clip.frames.nbytes <= self._budget():
            self._cache[key] = clip
            self._cached_bytes += clip.frames.nbytes
        return clip

    def _budget(self) -> int:
        worker = get_worker_info()
        return (self.config.memory_cache_mib << 20) // (worker.num_workers if worker else 1)
