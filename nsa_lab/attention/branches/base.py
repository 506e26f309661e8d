"""What a branch gets and what it gives."""

from dataclasses import dataclass, field
from types import ModuleType

from torch import Tensor, nn

from nsa_lab.partition import Context, Partition


@dataclass
class BranchInputs:
    """One layer's video queries and the keys they may see, after M-RoPE.

    q [Tq, H, D]; k, v [T, G, D]; pooled_k, pooled_v [N, G, D], or None where no branch needs them; block_bias [N]
    or None; ops is the backend. A branch may leave what it found in `notes` for whoever studies it.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    pooled_k: Tensor | None
    pooled_v: Tensor | None
    block_bias: Tensor | None
    context: Context
    partition: Partition
    ops: ModuleType
    scale: float
    notes: dict[str, Tensor] = field(default_factory=dict)


class Branch(nn.Module):
    """Attention of the video queries to some of the keys. A branch must not see a key after its query."""

    needs_pooling: bool = False

    def forward(self, inputs: BranchInputs) -> Tensor:
        """[Tq, H, D]; zero where the query sees nothing."""
        raise NotImplementedError

    def keys_seen(self, context: Context, partition: Partition, notes: dict[str, Tensor]) -> Tensor:
        """[Tq, G] or [Tq, 1] float: how many keys, pooled ones included, each (query, group) reads in this branch."""
        raise NotImplementedError
