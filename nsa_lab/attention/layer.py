"""One layer's sparse attention of video queries: partition -> branches -> gate -> sum (VideoNSA, section 2)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nsa_lab.attention.backends import BACKENDS, choose_backend
from nsa_lab.attention.branches import BRANCHES, Branch, BranchInputs
from nsa_lab.attention.compressor import COMPRESSORS
from nsa_lab.attention.gate import GATES
from nsa_lab.attention.smooth import smooth
from nsa_lab.config.schema import AttentionConfig
from nsa_lab.partition import PARTITIONERS, Context, Partition


@dataclass(frozen=True)
class HeadDims:
    """hidden: width of the residual stream; H query heads share G key/value heads of D dims each."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int


class SparseAttention(nn.Module):
    """The gated sum of the enabled branches. A disabled branch has no parameters, no gate column and no cost.

    After a forward under `recording(True)`, `record` holds the gates [Tq, H, R] and the notes of the branches.
    """

    def __init__(self, config: AttentionConfig, dims: HeadDims):
        super().__init__()
        configs = {name: getattr(config.branches, name) for name in BRANCHES}
        branches = {name: BRANCHES[name](sub) for name, sub in configs.items() if sub.enabled}
        self.branches: nn.ModuleDict = nn.ModuleDict(branches)
        self.compressor = COMPRESSORS[config.compressor.kind](
            dims.head_dim,
            PARTITIONERS[config.partition.kind].longest(config.partition),
            config.compressor.mlp_hidden,
        )
        self.gate = GATES[config.gate.kind](
            dims.hidden_size, dims.num_heads, len(branches), config.gate.temperature, config.gate.value
        )
        self.log_length_bias = config.branches.compression.log_length_bias
        self.backend = config.backend
        self.needs_pooling = any(branch.needs_pooling for branch in branches.values())
        self.scale = dims.head_dim**-0.5
        self.gate_means: Tensor | None = None
        self.record: LayerRecord | None = None
        self.recording = False

    def forward(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, context: Context, partition: Partition) -> Tensor:
        """x [Tq, hidden] attention inputs of the queries, q [Tq, H, D], k and v [T, G, D]; [Tq, H, D]."""
        inputs = self._inputs(q, k, v, context, partition)
        gates = self.gate(x).to(q.dtype)
        out = torch.zeros_like(q)
        for column, branch in enumerate(self.branches.values()):
            out = out + gates[:, :, column, None] * branch(inputs)
        self.gate_means = gates.detach().float().mean((0, 1)) if len(gates) else None
        if self.recording:
            self.record = LayerRecord(gates.detach(), inputs.notes, self._keys_seen(inputs), context, partition)
        return out

    def _inputs(self, q: Tensor, k: Tensor, v: Tensor, context: Context, partition: Partition) -> BranchInputs:
        pooled_k, pooled_v = self.compressor(k, v, partition) if self.needs_pooling else (None, None)
        if partition.confidence is not None and self.needs_pooling:
            pooled_k, pooled_v = smooth(pooled_k, pooled_v, partition.confidence)
        bias = partition.lengths.to(torch.float32).log() if self.log_length_bias else None
        ops = BACKENDS[choose_backend(self.backend, q.device)]
        return BranchInputs(q, k, v, pooled_k, pooled_v, bias, context, partition, ops, self.scale)

    def _keys_seen(self, inputs: BranchInputs) -> dict[str, float]:
        """Keys read per query and group, the mean over both, by branch."""
        seen: dict[str, float] = {}
        for name, branch in self.branches.items():
            assert isinstance(branch, Branch)
            counts = branch.keys_seen(inputs.context, inputs.partition, inputs.notes)
            seen[name] = float(counts.mean()) if len(counts) else 0.0
        return seen


@dataclass(frozen=True)
class LayerRecord:
    """What one forward of a layer did: gates [Tq, H, R], the branches' notes, keys read per query by branch, blocks."""

    gates: Tensor
    notes: dict[str, Tensor]
    keys_seen: dict[str, float]
    context: Context
    partition: Partition
