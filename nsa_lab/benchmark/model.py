"""Our model as lmms-eval asks it: `python -m lmms_eval --model nsa_lab --model_args pretrained=runs/x,fps=4 ...`.

lmms-eval alone imports this module, by the manifest's entry point.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages

from nsa_lab.api import load_model
from nsa_lab.benchmark.letters import bare_letter
from nsa_lab.benchmark.settings import answers_folder, model_settings
from nsa_lab.config.load import parse_overrides
from nsa_lab.data import BadSampleError, Sample, Turn
from nsa_lab.errors import NsaLabError
from nsa_lab.evaluation.ask import Answerer
from nsa_lab.evaluation.evaluate import settings_digest, weights_digest
from nsa_lab.evaluation.predictions import Row, recorded
from nsa_lab.files import digest
from nsa_lab.origin import training_device

BETWEEN = ";"
GREEDY = {"do_sample": False, "temperature": 0, "num_beams": 1, "top_p": 1.0}

logger = logging.getLogger("nsa_lab")


@dataclass(frozen=True)
class Question:
    """Row `place` of a task's data, and what is asked about its video."""

    task: str
    place: int
    sample: Sample

    @property
    def text(self) -> str:
        return self.sample.turns[-1].question


class NsaLab(lmms):
    """Answers lmms-eval's generate_until tasks about one video each, greedily, `batch_size` at once.

    `pretrained` is a run's folder, an exported one or a hub id; `design` are settings on top, as
    `attention.branches.window.size=512;attention.partition.kind=frame`. Frames are `fps` a second, at most
    `max_frames`, of at most `pixels_per_frame`; what is not given is the model's own. With a folder `predictions`,
    every answer is kept there and not asked again; it holds those of one task. With `prefill_chunk` prompts are read
    about so many tokens at a time, in less memory. Raises NsaLabError as `load_model`.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        design: str = "",
        fps: float | None = None,
        max_frames: int | None = None,
        pixels_per_frame: int | None = None,
        bare_letters: bool = True,
        predictions: str | None = None,
        prefill_chunk: int | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
    ):
        super().__init__()
        given = parse_overrides([setting for setting in str(design).split(BETWEEN) if setting])
        self.model = load_model(str(pretrained), model_settings(fps, max_frames, pixels_per_frame) | given)
        assert self.model.experiment is not None
        self.config = self.model.experiment
        self._rank, self._world_size = (int(os.environ.get(name, d)) for name, d in (("RANK", 0), ("WORLD_SIZE", 1)))
        self.device = torch.device(device) if device else _own_device(self.config.training.accelerator)
        self.model.to(self.device)  # type: ignore[arg-type]
        self.prefill_chunk = None if prefill_chunk is None else int(prefill_chunk)
        self.bare_letters, self.batch_size = bare_letters, int(batch_size)
        self.predictions = None if predictions is None else Path(str(predictions))

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answer to each request. Raises NsaLabError where one does not ask for a greedy answer about one video."""
        answers: dict[tuple[str, int], str] = {}
        asked = [(self._question(request.args), request.args[2]) for request in requests]
        for task in dict.fromkeys(question.task for question, _ in asked):
            mine = {question.place: (question, wanted) for question, wanted in asked if question.task == task}
            limit = _new_tokens(task, [wanted for _, wanted in mine.values()])
            rows = self._answered(task, [question for question, _ in mine.values()], limit)
            answers |= {(task, row["place"]): row["understood"] for row in rows}
        return [answers[question.task, question.place] for question, _ in asked]

    def loglikelihood(self, requests: list[Instance]) -> Any:
        raise NsaLabError("nsa-lab's model writes answers; a task that wants likelihoods cannot be asked")

    def generate_until_multi_round(self, requests: list[Instance]) -> Any:
        raise NsaLabError(
            "nsa-lab's model answers one question about a video; a task of several rounds cannot be asked"
        )

    def _question(self, arguments: Any) -> Question:
        _, doc_to_messages, _, place, task, split = arguments
        messages = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][place]))
        return Question(task, place, _sample(messages, f"{task}, row {place}"))

    def _answered(self, task: str, questions: Sequence[Question], limit: int) -> list[Row]:
        about = {
            "task": task,
            "weights": weights_digest(self.model),
            "settings": settings_digest(self.config),
            "data": digest([[q.place, q.text, q.sample.video.name] for q in questions]),
            "max_new_tokens": str(limit),
            "bare_letters": str(self.bare_letters),
        }
        answerer = Answerer(self.model, limit, self.prefill_chunk)
        home = self.predictions and answers_folder(self.predictions, self.rank, self.world_size)
        with recorded(home, about) as predictions:
            left = [question for question in questions if (question.place, 0) not in predictions.rows]
            for first in range(0, len(left), self.batch_size):
                predictions.add(self._rows(answerer, left[first : first + self.batch_size]))
                logger.warning("%s: %d of %d answered", task, len(predictions.rows), len(questions))
            return [predictions.rows[question.place, 0] for question in questions]

    def _rows(self, answerer: Answerer, questions: Sequence[Question]) -> list[Row]:
        """Rows of `questions`. One whose video cannot be used has an empty answer, where data.on_bad_sample says so."""

        def refuse(named: BadSampleError) -> None:
            if self.config.data.on_bad_sample != "skip":
                raise NsaLabError(f"{named}; or count it as wrong with data.on_bad_sample=skip") from named
            logger.warning("counted as wrong: %s", named)

        return [self._row(*pair) for pair in answerer.answered(questions, refuse)]

    def _row(self, question: Question, found: str | BadSampleError) -> Row:
        """`understood` is what lmms-eval gets; it knows what is expected and right."""
        row = {
            "place": question.place,
            "turn": 0,
            "id": question.sample.video.name,
            "group": question.task,
            "question": question.text,
            "expected": None,
            "answer": None,
            "understood": "",
            "correct": None,
        }
        if isinstance(found, BadSampleError):
            return row | {"bad": str(found)}
        given = bare_letter(question.text, found) if found and self.bare_letters else found
        return row | {"answer": found, "understood": given}


def _own_device(accelerator: str) -> torch.device:
    device = training_device(accelerator)
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if device.type == "cuda" else device


def _new_tokens(task: str, wanted: Sequence[dict[str, Any]]) -> int:
    """How long answers may be. Raises NsaLabError where it is not said, or they are not to be greedy."""
    for kwargs in wanted:
        if other := {key: kwargs[key] for key, value in GREEDY.items() if kwargs.get(key, value) not in (value, None)}:
            raise NsaLabError(f"{task}: nsa-lab's model answers greedily; the task's generation_kwargs say {other}")
    limits = {kwargs.get("max_new_tokens") for kwargs in wanted}
    if len(limits) != 1 or not all(isinstance(limit, int) and limit > 0 for limit in limits):
        raise NsaLabError(f"{task}: max_new_tokens is {sorted(map(str, limits))}; give --gen_kwargs max_new_tokens=16")
    return int(limits.pop() or 0)


def _sample(messages: ChatMessages, where: str) -> Sample:
    """The one question of `messages` about its one video."""
    images, videos, audios = messages.extract_media()
    if images or audios or len(videos) != 1 or not isinstance(videos[0], str):
        raise NsaLabError(
            f"{where}: nsa-lab's model is asked about one video file; here are {len(videos)}, {len(images)} images and"
            f" {len(audios)} sounds (a video that is not where the task looks for it is left out)"
        )
    if any(getattr(content, "start_time", None) is not None for one in messages.messages for content in one.content):
        raise NsaLabError(f"{where}: nsa-lab's model sees whole videos; the task asks about a part of one")
    said = {role: "\n".join(_texts(messages, role)) for role in ("system", "user", "assistant")}
    if said["assistant"] or not said["user"]:
        raise NsaLabError(f"{where}: nsa-lab's model answers one question; here is a conversation")
    turns = (Turn(said["user"].strip(), None),)
    return Sample(where, Path(videos[0]), turns, where, system=said["system"] or None)


def _texts(messages: ChatMessages, role: str) -> Iterator[str]:
    for message in messages.messages:
        if message.role == role:
            yield from (content.text for content in message.content if content.type == "text")
