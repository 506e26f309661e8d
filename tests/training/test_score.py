import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nsa_lab.model.token_loss import token_loss
from nsa_lab.training.score import Meter, Score, score_answers

VOCABULARY = 7


class Oracle(nn.Module):
    """Scores given logits, of the rows asked for, and remembers what it was asked."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, *, logits_to_keep, targets, **inputs):
        self.rows, self.inputs = logits_to_keep, inputs
        return token_loss(self.logits[0, logits_to_keep], torch.eye(VOCABULARY), targets)


@pytest.fixture
def batch():
    """Two samples of 6 and 5 tokens; answers of 2, 1 and 2 labelled tokens."""
    ignored = -100
    labels = [ignored, ignored, 3, 4, ignored, 5, ignored, ignored, ignored, 1, 2]
    answers = [-1, -1, 0, 0, -1, 1, -1, -1, -1, 2, 2]
    return {
        "input_ids": torch.arange(11)[None] % VOCABULARY,
        "labels": torch.tensor([labels]),
        "answer_index": torch.tensor([answers]),
        "answer_tasks": ["needle", "needle", "order"],
    }


def logits_predicting(tokens):
    return F.one_hot(torch.tensor(tokens), VOCABULARY).float()[None] * 5


def test_only_rows_that_predict_a_label_get_logits(batch):
    oracle = Oracle(torch.randn(1, 11, VOCABULARY))
    score = score_answers(oracle, batch)
    assert oracle.rows.tolist() == [1, 2, 4, 8, 9]
    assert score.tokens == 5
    assert oracle.inputs["use_cache"] is False
    assert "labels" not in oracle.inputs and "answer_index" not in oracle.inputs


def test_loss_is_the_mean_over_labelled_tokens_shifted_by_one(batch):
    logits = torch.randn(1, 11, VOCABULARY)
    expected = F.cross_entropy(logits[0, :-1], batch["labels"][0, 1:], ignore_index=-100)
    assert torch.allclose(score_answers(Oracle(logits), batch).loss, expected)


def test_an_answer_counts_when_all_its_tokens_are_right(batch):
    right = [0, 3, 4, 0, 5, 0, 0, 0, 1, 2, 0]
    assert score_answers(Oracle(logits_predicting(right)), batch).correct.tolist() == [True, True, True]
    half = [0, 3, 0, 0, 5, 0, 0, 0, 0, 2, 0]
    assert score_answers(Oracle(logits_predicting(half)), batch).correct.tolist() == [False, True, False]


def test_meter_weighs_loss_by_tokens_and_accuracy_by_answers():
    meter = Meter()
    meter.add(Score(torch.tensor(1.0), torch.tensor([True, False]), 4, ["needle", "order"]))
    meter.add(Score(torch.tensor(4.0), torch.tensor([True]), 2, ["needle"]))
    assert meter.metrics("val", by_task=True) == {
        "val/loss": pytest.approx(2.0),
        "val/accuracy": pytest.approx(2 / 3),
        "val/accuracy/needle": 1.0,
        "val/accuracy/order": 0.0,
    }
    meter.reset()
    meter.add(Score(torch.tensor(3.0), torch.tensor([False]), 1, ["order"]))
    assert meter.metrics("train", by_task=False) == {"train/loss": 3.0, "train/accuracy": 0.0}
