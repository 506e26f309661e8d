"""Branches of sparse attention. A new one is a file, a config dataclass in BranchesConfig, and a line here."""

from nsa_lab.attention.branches.base import Branch, BranchInputs
from nsa_lab.attention.branches.compression import CompressionBranch
from nsa_lab.attention.branches.selection import SelectionBranch
from nsa_lab.attention.branches.window import WindowBranch

BRANCHES: dict[str, type[Branch]] = {
    "compression": CompressionBranch,
    "selection": SelectionBranch,
    "window": WindowBranch,
}

__all__ = ["BRANCHES", "Branch", "BranchInputs", "CompressionBranch", "SelectionBranch", "WindowBranch"]
