"""Evaluation: scores on held-out samples, answers about a video, and how many of them are right."""

from nsa_lab.evaluation.ask import ask
from nsa_lab.evaluation.evaluate import Evaluation, evaluate
from nsa_lab.evaluation.score import score

__all__ = ["Evaluation", "ask", "evaluate", "score"]
