"""Branches of sparse attention. A new one is one file and one line here."""

from dataclasses import dataclass

from nsa_lab.attention.branches.base import Branch
from nsa_lab.attention.branches.compression import CompressionBranch
from nsa_lab.attention.branches.selection import SelectionBranch
from nsa_lab.attention.branches.window import WindowBranch
from nsa_lab.plugin import parts

BRANCHES: dict[str, type[Branch]] = {
    "compression": CompressionBranch,
    "selection": SelectionBranch,
    "window": WindowBranch,
}


@parts(BRANCHES)
@dataclass
class BranchesConfig:
    """Which branches there are; each is switched on by `enabled`."""


__all__ = [
    "BRANCHES",
    "Branch",
    "BranchesConfig",
    "CompressionBranch",
    "SelectionBranch",
    "WindowBranch",
]
