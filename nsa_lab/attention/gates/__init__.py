"""How branches are weighed. A new gate is one file and one line here."""

from dataclasses import dataclass

from nsa_lab.attention.gates.base import Gate
from nsa_lab.attention.gates.constant import ConstantGate
from nsa_lab.attention.gates.fixed import FixedGate
from nsa_lab.attention.gates.linear import LinearGate
from nsa_lab.attention.gates.mlp import MLPGate
from nsa_lab.attention.gates.softmax import SoftmaxGate
from nsa_lab.plugin import chosen

GATES: dict[str, type[Gate]] = {
    "mlp": MLPGate,
    "linear": LinearGate,
    "softmax": SoftmaxGate,
    "constant": ConstantGate,
    "fixed": FixedGate,
}


@chosen(kind=GATES)
@dataclass
class GateConfig:
    """How branches are weighed. The learned kinds start at 0.5 (softmax: 1/R)."""

    kind: str = "mlp"


__all__ = ["GATES", "Gate", "GateConfig"]
