"""How well a model answers one packed batch: the loss on the answers' tokens, and which answers are right."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nsa_lab.attention.trace import Trace
from nsa_lab.data.chat import IGNORED
from nsa_lab.model import MODEL_INPUTS
from nsa_lab.training.ranks import added, gathered


@dataclass(frozen=True)
class Score:
    """One batch's result: `loss` is a scalar over `tokens` labelled tokens, `correct` is bool [answers].

    Of a shared batch the tokens are those that the own rows predict, and its first process has all of the answers.
    """

    loss: Tensor
    correct: Tensor
    tokens: int
    tasks: list[str]


def score_answers(model: nn.Module, batch: Mapping[str, Any], trace: Trace | None = None) -> Score:
    """Teacher-forced loss and exact matches of a packed batch (see `nsa_lab.data.collate`).

    The loss is the mean cross-entropy over labelled tokens. An answer is correct when every labelled token of it is
    the argmax, which is when greedy decoding would write it. Logits exist only for the rows that predict a label, a
    chunk of them at a time (nsa_lab/model/token_loss.py). `trace` collects what the forward says of itself, its
    auxiliary losses among it.
    """
    labels, answers = batch["labels"][0], batch["answer_index"][0]
    targets = batch["label_rows"] if "label_rows" in batch else (labels[1:] != IGNORED).nonzero().squeeze(1) + 1
    inputs = {name: batch[name] for name in (*MODEL_INPUTS, "host") if name in batch}
    rows = batch.get("label_from", targets - 1)
    found = model(**inputs, use_cache=False, logits_to_keep=rows, targets=labels[targets], trace=trace)
    correct = torch.ones(len(batch["answer_tasks"]), dtype=torch.long, device=labels.device)
    correct = correct.scatter_reduce(0, answers[targets], found.hits.long(), "amin").bool()
    tasks = list(batch["answer_tasks"])
    if shared := "host" in batch and batch["host"].shared:
        correct = shared.group.everywhere(correct)
        if shared.group.place:
            correct, tasks = correct[:0], []
    return Score(loss=found.loss, correct=correct, tokens=len(targets), tasks=tasks)


class Meter:
    """Adds up scores; nothing leaves the device before `metrics` is asked for."""

    def __init__(self) -> None:
        self.scores: list[Score] = []

    def reset(self) -> None:
        self.scores = []

    def add(self, score: Score) -> None:
        self.scores.append(Score(score.loss.detach(), score.correct, score.tokens, score.tasks))

    def metrics(self, prefix: str, by_task: bool) -> dict[str, float]:
        """`prefix/loss` over labelled tokens, `prefix/accuracy` over answers and, `by_task`, one accuracy a task.

        All of them over all processes, each of which must ask.
        """
        sums = added(gathered(self._sums(by_task)))
        return {f"{prefix}/{name}": value / count for name, (value, count) in sums.items()}

    def _sums(self, by_task: bool) -> dict[str, tuple[float, float]]:
        """By metric its sum and what that is divided by, of this process alone."""
        tokens = sum(score.tokens for score in self.scores)
        loss = sum(score.loss.item() * score.tokens for score in self.scores)
        tasks = [task for score in self.scores for task in score.tasks]
        correct = [hit for score in self.scores for hit in score.correct.tolist()]
        sums: dict[str, tuple[float, float]] = {"loss": (loss, tokens), "accuracy": (sum(correct), len(correct))}
        for task in sorted(set(tasks)) if by_task else ():
            hits = [hit for hit, of in zip(correct, tasks, strict=True) if of == task]
            sums[f"accuracy/{task}"] = (sum(hits), len(hits))
        return sums
