"""What attends. A new method is one file and one line here."""

from nsa_lab.attention.methods.base import Method, Plan
from nsa_lab.attention.methods.dense import Dense
from nsa_lab.attention.methods.frame_local import FrameLocal
from nsa_lab.attention.methods.nsa import NSA
from nsa_lab.attention.methods.released import Released

METHODS: dict[str, type[Method]] = {
    "nsa": NSA,
    "dense": Dense,
    "released": Released,
    "frame_local": FrameLocal,
}

__all__ = ["METHODS", "NSA", "Dense", "FrameLocal", "Method", "Plan", "Released"]
