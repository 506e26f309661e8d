"""One layer's sparse attention of video queries: partition -> branches -> gate -> sum (VideoNSA, section 2)."""

from dataclasses import dataclass, replace
from types import ModuleType

import torch
from torch import Tensor, nn

from nsa_lab.attention.backends import BACKENDS, choose_backend
from nsa_lab.attention.backends.triton_path import has_kernel
from nsa_lab.attention.branches import (
    BRANCHES,
    Branch,
    BranchInputs,
    CompressionBranch,
    SelectionBranch,
    WindowBranch,
)
from nsa_lab.attention.compressor import COMPRESSORS, MeanCompressor
from nsa_lab.attention.gate import GATES
from nsa_lab.attention.select import BlockRule
from nsa_lab.attention.smooth import smooth
from nsa_lab.config.schema import AttentionConfig
from nsa_lab.errors import NsaLabError
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
        _check_design(config, dims)
        self.fusible = _fusible(branches)
        self.needs_pooling = any(branch.needs_pooling for branch in branches.values())
        self.scale = dims.head_dim**-0.5
        self.gate_means: Tensor | None = None
        self.record: LayerRecord | None = None
        self.recording = False

    def forward(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, context: Context, partition: Partition) -> Tensor:
        """x [Tq, hidden] attention inputs of the queries, q [Tq, H, D], k and v [T, G, D]; [Tq, H, D]."""
        ops = BACKENDS[choose_backend(self.backend, q.device)]
        fused = self.fusible and hasattr(ops, "video_nsa")
        inputs = self._inputs(q, k, v, context, partition, ops, mean_inside=fused)
        gates = self.gate(x).to(q.dtype)
        out = self._fused(inputs, gates) if fused else self._branch_by_branch(inputs, gates)
        self.gate_means = gates.detach().float().mean((0, 1)) if len(gates) else None
        if self.recording:
            self.record = LayerRecord(gates.detach(), inputs.notes, self._keys_seen(inputs), context, partition)
        return out

    def _inputs(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        context: Context,
        partition: Partition,
        ops: ModuleType,
        mean_inside: bool,
    ) -> BranchInputs:
        """mean_inside: the backend itself pools by the mean, so that the mean compressor does not run."""
        plain = isinstance(self.compressor, MeanCompressor) and partition.confidence is None
        pool = self.needs_pooling and not (mean_inside and plain)
        pooled_k, pooled_v = self._pooled(k, v, partition) if pool else (None, None)
        bias = partition.lengths.to(torch.float32).log() if self.log_length_bias else None
        return BranchInputs(q, k, v, pooled_k, pooled_v, bias, context, partition, ops, self.scale)

    def pooled_inputs(self, q: Tensor, k: Tensor, v: Tensor, context: Context, partition: Partition) -> BranchInputs:
        """What the branches get in a forward with these arguments, pooled blocks included where one needs them."""
        ops = BACKENDS[choose_backend(self.backend, q.device)]
        return self._inputs(q, k, v, context, partition, ops, mean_inside=False)

    def _pooled(self, k: Tensor, v: Tensor, partition: Partition) -> tuple[Tensor, Tensor]:
        pooled_k, pooled_v = self.compressor(k, v, partition)
        if partition.confidence is None:
            return pooled_k, pooled_v
        return smooth(pooled_k, pooled_v, partition.confidence)

    def _branch_by_branch(self, inputs: BranchInputs, gates: Tensor) -> Tensor:
        out = torch.zeros_like(inputs.q)
        for column, branch in enumerate(self.branches.values()):
            out = out + gates[:, :, column, None] * branch(inputs)
        return out

    def _fused(self, inputs: BranchInputs, gates: Tensor) -> Tensor:
        """All branches in one call of the backend."""
        branches = dict(self.branches.items())
        selection, window = branches.get("selection"), branches.get("window")
        rule = selection.rule if isinstance(selection, SelectionBranch) else BlockRule(1)
        pooled = None if inputs.pooled_k is None else (inputs.pooled_k, inputs.pooled_v)
        out, blocks = inputs.ops.video_nsa(
            inputs.q, inputs.k, inputs.v, gates, inputs.context, inputs.partition, branches=tuple(branches), rule=rule,
            window_size=window.size if isinstance(window, WindowBranch) else 1, pooled=pooled,
            block_bias=inputs.block_bias, scale=self.scale,
        )  # fmt: skip
        if blocks is not None:
            inputs.notes["blocks"] = blocks
        elif self.recording and isinstance(selection, SelectionBranch):
            inputs.notes["blocks"] = selection.choose(self._pooled_for_record(inputs))
        return out

    def _pooled_for_record(self, inputs: BranchInputs) -> BranchInputs:
        pooled_k, pooled_v = self._pooled(inputs.k, inputs.v, inputs.partition)
        return replace(inputs, pooled_k=pooled_k, pooled_v=pooled_v)

    def _keys_seen(self, inputs: BranchInputs) -> dict[str, float]:
        """Keys read per query and group, the mean over both, by branch."""
        seen: dict[str, float] = {}
        for name, branch in self.branches.items():
            assert isinstance(branch, Branch)
            counts = branch.keys_seen(inputs.context, inputs.partition, inputs.notes)
            seen[name] = float(counts.mean()) if len(counts) else 0.0
        return seen


def _fusible(branches: dict[str, Branch]) -> bool:
    """Whether a backend's `video_nsa` computes these branches: the three standard ones, blocks chosen by its kernel."""
    standard = (CompressionBranch, SelectionBranch, WindowBranch)
    selections = [branch for branch in branches.values() if isinstance(branch, SelectionBranch)]
    return all(type(branch) in standard for branch in branches.values()) and all(
        has_kernel(branch.scorer, branch.rule) for branch in selections
    )


def _check_design(config: AttentionConfig, dims: HeadDims) -> None:
    """Raise NsaLabError where the named backend does not compute this design."""
    why_not = getattr(BACKENDS.get(config.backend), "why_not_design", None)
    reason = None if why_not is None else why_not(config, dims.head_dim)
    if reason is not None:
        raise NsaLabError(f"attention.backend={config.backend} does not run this design: {reason}")


@dataclass(frozen=True)
class LayerRecord:
    """What one forward of a layer did: gates [Tq, H, R], the branches' notes, keys read per query by branch, blocks."""

    gates: Tensor
    notes: dict[str, Tensor]
    keys_seen: dict[str, float]
    context: Context
    partition: Partition
