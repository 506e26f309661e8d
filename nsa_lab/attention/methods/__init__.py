"""What attends. A new method is one file and one line here."""

from nsa_lab.attention.methods.base import Method, Plan
from nsa_lab.attention.methods.dense import Dense
from nsa_lab.attention.methods.nsa import NSA
from nsa_lab.attention.methods.released import Released

METHODS: dict[str, type[Method]] = {
    "nsa": NSA,
    "dense": Dense,
    "released": Released,
}

__all__ = ["METHODS", "NSA", "Dense", "Method", "Plan", "Released"]
