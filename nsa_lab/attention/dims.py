"""The head layout of one layer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class HeadDims:
    """hidden_size: width of the residual stream; H query heads share G key/value heads of D dims each."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
