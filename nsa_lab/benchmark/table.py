"""Scores beside the paper's."""

from collections.abc import Sequence

from nsa_lab.benchmark.run import Score
from nsa_lab.comparison.grid import Grid

PAPER = {"videonsa": "VideoNSA", "one_design": "VideoNSA, one design", "dense": "Qwen2.5-VL-7B"}
TITLE = "Benchmarks, per cent; the last columns are the paper's (7B)"


def scores_table(scores: Sequence[Score]) -> Grid:
    """A line for each model and task."""
    head = ["benchmark", "model", "questions", "unanswered", "score", *PAPER.values()]
    return Grid(TITLE, head, [_line(score) for score in scores])


def _line(score: Score) -> list[str]:
    paper = [score.paper.get(name) for name in PAPER]
    counts = [str(score.questions), str(score.unanswered) if score.unanswered else ""]
    return [
        score.task,
        score.model,
        *counts,
        f"**{score.score:.1f}**",
        *("" if p is None else f"{p:.1f}" for p in paper),
    ]
