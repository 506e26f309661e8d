"""Comparison: designs trained on the same tasks with the same seeds, and what the differences are worth."""

from nsa_lab.comparison.ablation import read_comparison
from nsa_lab.comparison.compare import compare
from nsa_lab.comparison.report import report

__all__ = ["compare", "read_comparison", "report"]
