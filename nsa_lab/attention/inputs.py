"""What branches and scorers get, and what dense attention got."""

from dataclasses import dataclass

from torch import Tensor

from nsa_lab.attention.ops import Backend
from nsa_lab.attention.trace import Trace
from nsa_lab.partition import Context, Partition


@dataclass
class BranchInputs:
    """One layer's video queries and the keys they may see, after M-RoPE.

    x [Tq, hidden] attention inputs of the queries; q [Tq, H, D]; k, v [T, G, D]; pooled_k, pooled_v [N, G, D], or None
    where no branch needs them; block_bias [N] or None.
    """

    layer: int
    x: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    pooled_k: Tensor | None
    pooled_v: Tensor | None
    block_bias: Tensor | None
    context: Context
    partition: Partition
    ops: Backend
    scale: float
    trace: Trace


@dataclass
class DenseInputs:
    """The video rows of a dense layer after M-RoPE: q [Tq, H, D] of the video tokens, k and v [T, G, D] of all."""

    q: Tensor
    k: Tensor
    v: Tensor
    context: Context
    ops: Backend
    scale: float
