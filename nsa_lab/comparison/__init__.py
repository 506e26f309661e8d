"""Comparison: designs trained on the same tasks with the same seeds, and what the differences are worth."""

from nsa_lab.comparison.ablation import is_comparison_file, read_comparison
from nsa_lab.comparison.compare import compare
from nsa_lab.comparison.report import report

__all__ = ["compare", "is_comparison_file", "read_comparison", "report"]
