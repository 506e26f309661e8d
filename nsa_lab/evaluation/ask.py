"""Ask a model about a video."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from nsa_lab.config import ExperimentConfig
from nsa_lab.data import BadSampleError, Example, Sample, Turn, VideoDataset, load_tokenizer
from nsa_lab.errors import NsaLabError
from nsa_lab.evaluation.decode import greedy
from nsa_lab.model import VideoNSAForConditionalGeneration


def ask(
    model: VideoNSAForConditionalGeneration,
    video: str | Path,
    question: str,
    *,
    max_new_tokens: int = 64,
    prefill_chunk: int | None = None,
) -> str:
    """The model's answer to `question` about the video file `video`, greedily decoded.

    The video is sampled and resized as the model's data settings say (`load_model` brings them), and its tokens are
    placed as the model itself does (`config.positions`). With prefill_chunk the prompt is read about so many tokens at
    a time: the same answer in less memory. Raises NsaLabError where the model has none, the video cannot be read, or
    the prompt not be cut.
    """
    answerer = Answerer(model, max_new_tokens, prefill_chunk)
    try:
        return answerer.answers([answerer.example(about(video, question))])[0]
    except BadSampleError as error:
        raise NsaLabError(str(error)) from error


def about(video: str | Path, question: str) -> Sample:
    """The sample of one question about a video file."""
    return Sample(str(video), Path(video), (Turn(question, None),), "ask")


class Asked(Protocol):
    """What has a sample with an open question."""

    @property
    def sample(self) -> Sample: ...


Question = TypeVar("Question", bound=Asked)


class Answerer:
    """Answers questions with a model, greedily, under its own data settings. Raises NsaLabError where it has none."""

    def __init__(self, model: VideoNSAForConditionalGeneration, max_new_tokens: int, prefill_chunk: int | None = None):
        self.model, self.max_new_tokens, self.prefill_chunk = model, max_new_tokens, prefill_chunk
        settings = own_settings(model).data
        self.tokenizer = load_tokenizer(settings.tokenizer, Path(settings.cache_dir))
        self.data = VideoDataset([], self.tokenizer, settings, model.config.vision_config.tokens_per_second)

    def example(self, sample: Sample) -> Example:
        """`sample` as tensors, up to its open question. Raises BadSampleError where it cannot be used."""
        return self.data.example(sample)

    def answers(self, examples: Sequence[Example]) -> list[str]:
        """The answer to each example, all in one batch. Raises NsaLabError where the GPU has no room for it."""
        if not examples:
            return []
        end = self.tokenizer.convert_tokens_to_ids("<|im_end|>")
        try:
            written = greedy(self.model, examples, end, self.max_new_tokens, self.prefill_chunk)
        except torch.OutOfMemoryError as error:
            tokens = sum(len(example.input_ids) for example in examples)
            raise NsaLabError(
                f"the GPU has no room for {len(examples)} prompts of {tokens:,} tokens together; lower the batch,"
                " data.max_frames or data.max_pixels, or read them in (smaller) chunks, prefill_chunk=4096"
            ) from error
        return [str(self.tokenizer.decode(ids)).strip() for ids in written]

    def answered(
        self, questions: Sequence[Question], refuse: Callable[[BadSampleError], None]
    ) -> list[tuple[Question, str | BadSampleError]]:
        """Each question with its answer, all in one batch; before them those whose sample cannot be used, with why.

        `refuse` is told of each of these, with the sample's id, and may raise. Raises NsaLabError as `answers`.
        """
        examples: list[Example] = []
        good: list[Question] = []
        bad: list[tuple[Question, str | BadSampleError]] = []
        for question in questions:
            try:
                examples.append(self.example(question.sample))
                good.append(question)
            except BadSampleError as error:
                refuse(error.of(question.sample.id))
                bad.append((question, error))
        return [*bad, *zip(good, self.answers(examples), strict=True)]


def own_settings(
    model: VideoNSAForConditionalGeneration, experiment: ExperimentConfig | None = None
) -> ExperimentConfig:
    """`experiment`, or the one that the model brings, with the model's positions. Raises NsaLabError on neither."""
    settings = experiment or model.experiment
    if settings is None:
        raise NsaLabError("this model brings no data settings; load it with nsa_lab.load_model or set its `experiment`")
    return dataclasses.replace(settings, data=dataclasses.replace(settings.data, positions=model.config.positions))
