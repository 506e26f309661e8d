"""Ask a model all questions of a task or an annotation file, and count its right answers."""

import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from nsa_lab.comparison.statistics import share_interval
from nsa_lab.config import identity
from nsa_lab.data import BadSampleError, Example
from nsa_lab.errors import NsaLabError
from nsa_lab.evaluation.answers import understood
from nsa_lab.evaluation.ask import Answerer, own_settings
from nsa_lab.evaluation.decode import prompts
from nsa_lab.evaluation.predictions import ABOUT, LINES, Predictions, Row, recorded
from nsa_lab.evaluation.questions import Question, read_questions
from nsa_lab.files import digest, write_csv, write_json, writing
from nsa_lab.model import VideoNSAForConditionalGeneration, measure_budget
from nsa_lab.origin import machine_facts

ALL = "all"
SUMMARY, TABLE = "summary.json", "accuracy.csv"
ELEMENTS = 64
"""Of each weight, so many go into a model's digest: a training changes all of them."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Accuracy:
    """Right answers of one group. low, high: Wilson's 95% interval, as if all answers were independent; `skipped`
    questions, of samples that cannot be used, are not counted. Without answers all three shares are nan."""

    group: str
    questions: int
    correct: int
    accuracy: float
    low: float
    high: float
    skipped: int


@dataclass(frozen=True)
class Evaluation:
    """`accuracies` by group, the last over all; `predictions`, a row for each question in its order; the `files`.

    budget: what `measure_budget` says of the first prompts; empty where it was not measured.
    """

    accuracies: list[Accuracy]
    predictions: list[Row]
    files: list[Path]
    budget: dict[str, float]

    @property
    def accuracy(self) -> float:
        """The share of right answers over all groups."""
        return self.accuracies[-1].accuracy


def evaluate(
    model: VideoNSAForConditionalGeneration,
    data: str | Path,
    output: str | Path | None = None,
    *,
    videos: str | Path | None = None,
    batch: int = 4,
    max_new_tokens: int = 64,
    prefill_chunk: int | None = None,
    on_progress: Callable[[int, int, int], None] | None = None,
) -> Evaluation:
    """The model's greedy answers to all of `data`, a task's name (its validation clips) or an annotation file.

    With a folder `output`, each batch is written there as it is done, and what is there already is not asked again.
    Settings are those that the model brings: with data.on_bad_sample=skip a sample that cannot be used is left out of
    the accuracies, else it stops the evaluation, with its name. `on_progress` is told after each batch how many are
    done, of how many, and how many of them right. With prefill_chunk prompts are read about so many tokens at a time,
    in less memory. Raises NsaLabError on that, and as `recorded` and a chunked prefill do.
    """
    if batch < 1:
        raise NsaLabError(f"batch={batch} answers nothing; use 1 or more")
    answerer, config = Answerer(model, max_new_tokens, prefill_chunk), own_settings(model)
    questions, asked = read_questions(config, data, videos)
    about = {
        "weights": weights_digest(model),
        "settings": digest(read_by_answers(config)),
        "data": asked,
        "max_new_tokens": str(max_new_tokens),
    }
    with recorded(None if output is None else Path(output), about, read_by_answers(config)) as predictions:
        for _ in _answered(answerer, predictions, questions, batch, config.data.on_bad_sample == "skip"):
            if on_progress is not None:
                right = sum(row["correct"] is True for row in predictions.rows.values())
                on_progress(len(predictions.rows), len(questions), right)
        rows = [predictions.rows[question.place, question.turn] for question in questions]
        budget = _budget(answerer, questions, batch)
        facts = about | machine_facts(config.training.accelerator, None) | {"asked_of": str(data), "budget": budget}
        files = [] if output is None else _write(Path(output), rows, facts)
    return Evaluation(accuracies(rows), rows, files, budget)


def _budget(answerer: Answerer, questions: Sequence[Question], batch: int) -> dict[str, float]:
    """What the first `batch` prompts that can be read spend, each time anew; nothing, said so, where it cannot be."""
    why = "prompts are read in chunks (prefill_chunk)"
    if answerer.prefill_chunk is None and (examples := _first(answerer, questions, batch)):
        try:
            return measure_budget(answerer.model, prompts(answerer.model, examples))
        except torch.OutOfMemoryError:
            why = "the GPU has no room to record a whole batch; lower the batch"
    elif answerer.prefill_chunk is None:
        why = "no sample can be read"
    logger.warning("budget/* is not measured: %s", why)
    return {}


def _first(answerer: Answerer, questions: Sequence[Question], count: int) -> list[Example]:
    """The first `count` examples that can be used."""
    found: list[Example] = []
    for question in questions:
        with suppress(BadSampleError):  # which was said where it was asked
            found.append(answerer.example(question.sample))
        if len(found) == count:
            break
    return found


def _answered(
    answerer: Answerer, predictions: Predictions, questions: Sequence[Question], batch: int, skip: bool
) -> Iterator[None]:
    """Add the rows that `predictions` lacks, `batch` questions at a time; yields at first and after each."""
    left = [question for question in questions if (question.place, question.turn) not in predictions.rows]
    yield
    for first in range(0, len(left), batch):
        predictions.add(_rows(answerer, left[first : first + batch], skip))
        yield


def _rows(answerer: Answerer, questions: Sequence[Question], skip: bool) -> list[Row]:
    def refuse(named: BadSampleError) -> None:
        if not skip:
            raise NsaLabError(f"{named}; or leave such samples out with data.on_bad_sample=skip") from named
        logger.warning("left out: %s", named)

    return [_row(*pair) for pair in answerer.answered(questions, refuse)]


def _row(question: Question, found: str | BadSampleError) -> Row:
    """The row of an answer, or of a sample that cannot be used."""
    row = {
        "place": question.place,
        "turn": question.turn,
        "id": question.sample.id,
        "group": question.sample.task,
        "question": question.text,
        "expected": question.expected,
        "answer": None,
        "understood": None,
        "correct": None,
    }
    if isinstance(found, BadSampleError):
        return row | {"bad": str(found)}
    told, correct = understood(question.text, question.expected, found)
    return row | {"answer": found, "understood": told, "correct": correct}


def accuracies(rows: Sequence[Row]) -> list[Accuracy]:
    """Of each group, by name, and of all."""
    groups = sorted({row["group"] for row in rows})
    by_group = [_accuracy(group, [row for row in rows if row["group"] == group]) for group in groups]
    return [*by_group, _accuracy(ALL, rows)]


def _accuracy(name: str, rows: Sequence[Row]) -> Accuracy:
    counted = [row["correct"] for row in rows if row["correct"] is not None]
    right = sum(counted)
    share = right / len(counted) if counted else math.nan
    return Accuracy(name, len(counted), right, share, *share_interval(right, len(counted)), len(rows) - len(counted))


def _write(folder: Path, rows: Sequence[Row], facts: dict[str, Any]) -> list[Path]:
    table = [asdict(accuracy) for accuracy in accuracies(rows)]
    table = [{key: None if value != value else value for key, value in line.items()} for line in table]  # nan
    with writing(folder, "make room and run the same command again"):
        write_json(folder / SUMMARY, facts | {"accuracies": table})
        write_csv(folder / TABLE, [list(table[0]), *(list(line.values()) for line in table)])
    return [folder / name for name in (ABOUT, LINES, SUMMARY, TABLE)]


def weights_digest(model: VideoNSAForConditionalGeneration) -> str:
    """Twelve hex digits over names, shapes and some elements of all weights."""
    made = hashlib.sha256()
    for name, weight in model.state_dict().items():
        some = weight.flatten()[:: max(1, weight.numel() // ELEMENTS)].float().cpu()
        made.update(f"{name} {list(weight.shape)}".encode() + some.numpy().tobytes())
    return made.hexdigest()[:12]


def read_by_answers(config: Any) -> dict[str, Any]:
    """What an answer depends on besides weights, by dotted key: the design, and how a video becomes tokens."""
    names = ("annotations", "val_annotations", "videos", "drop", "on_bad_sample", "absolute_videos")
    places = [f"data.{name}" for name in names]
    return {
        key: value
        for key, value in identity(config).items()
        if key.startswith(("attention.", "data.")) and key not in places
    }
