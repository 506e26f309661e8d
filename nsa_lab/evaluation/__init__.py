"""Evaluation: scores on held-out samples, and answers about a video."""

from nsa_lab.evaluation.ask import ask
from nsa_lab.evaluation.score import evaluate

__all__ = ["ask", "evaluate"]
