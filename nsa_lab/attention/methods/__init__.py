"""What attends. A new method is one file and one line here."""

from nsa_lab.attention.methods.a_shape import AShape
from nsa_lab.attention.methods.base import Method, Plan
from nsa_lab.attention.methods.dense import Dense
from nsa_lab.attention.methods.flex_prefill import FlexPrefill
from nsa_lab.attention.methods.frame_local import FrameLocal
from nsa_lab.attention.methods.minference import MInference
from nsa_lab.attention.methods.nsa import NSA
from nsa_lab.attention.methods.released import Released
from nsa_lab.attention.methods.tri_shape import TriShape
from nsa_lab.attention.methods.x_attention import XAttention

METHODS: dict[str, type[Method]] = {
    "nsa": NSA,
    "dense": Dense,
    "released": Released,
    "frame_local": FrameLocal,
    "a_shape": AShape,
    "tri_shape": TriShape,
    "x_attention": XAttention,
    "flex_prefill": FlexPrefill,
    "minference": MInference,
}

__all__ = ["METHODS", "NSA", "Dense", "FrameLocal", "Method", "Plan", "Released"]
