"""What a model is asked: every turn of every sample, after the turns before it with their true answers."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsa_lab.config import ExperimentConfig
from nsa_lab.data import Sample, file_samples, task_samples
from nsa_lab.errors import NsaLabError, nearest
from nsa_lab.files import digest
from nsa_lab.tasks import TASKS


@dataclass(frozen=True)
class Question:
    """Turn `turn` of the sample at place `place` of its data; `sample` ends with it, unanswered."""

    place: int
    turn: int
    sample: Sample
    expected: str

    @property
    def text(self) -> str:
        return self.sample.turns[-1].question


def check_data(data: str | Path) -> None:
    """Raise NsaLabError unless `data` is a task's name or an annotation file."""
    if str(data) not in TASKS and not Path(data).is_file():
        hint = nearest(data, TASKS)
        raise NsaLabError(
            f"{data} is neither an annotation file nor a task; {hint}give a JSON or JSONL file,"
            f" or one of {', '.join(TASKS)}"
        )


def read_questions(
    config: ExperimentConfig, data: str | Path, videos: str | Path | None = None
) -> tuple[list[Question], str]:
    """The questions of `data` and their digest: of a task's validation clips, or of a file's samples.

    Clips are made with the dials of `config`, a file's videos looked for in `videos`, else in its data.videos. Raises
    NsaLabError where there are none.
    """
    check_data(data)
    samples = task_samples(config, str(data))["val"] if str(data) in TASKS else file_samples(config, data, videos)
    return _questions(samples), digest(_asked_about(samples))


def _questions(samples: Sequence[Sample]) -> list[Question]:
    return [
        Question(place, number, _asked(sample, number), str(turn.answer))
        for place, sample in enumerate(samples)
        for number, turn in enumerate(sample.turns)
    ]


def _asked(sample: Sample, number: int) -> Sample:
    last = dataclasses.replace(sample.turns[number], answer=None)
    return dataclasses.replace(sample, turns=(*sample.turns[:number], last))


def _asked_about(samples: Sequence[Sample]) -> list[Any]:
    """What is asked about which files, wherever these lie."""
    turns = [[(turn.question, turn.answer) for turn in sample.turns] for sample in samples]
    return [[s.id, s.video.name, s.task, s.system, asked] for s, asked in zip(samples, turns, strict=True)]
