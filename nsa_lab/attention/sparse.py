"""One layer's sparse attention of video queries: partition -> branches -> gate -> sum (VideoNSA, section 2)."""

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from nsa_lab.attention.backends import BACKENDS, choose_backend
from nsa_lab.attention.branches import (
    BRANCHES,
    Branch,
    CompressionBranch,
    SelectionBranch,
    WindowBranch,
)
from nsa_lab.attention.compressors import Compressor, MeanCompressor
from nsa_lab.attention.dims import HeadDims
from nsa_lab.attention.gates import Gate
from nsa_lab.attention.inputs import BranchInputs
from nsa_lab.attention.ops import Backend
from nsa_lab.attention.smooth import smooth
from nsa_lab.attention.trace import Trace
from nsa_lab.errors import NsaLabError
from nsa_lab.partition import Context, Partition, longest_block
from nsa_lab.plugin import build, switched_on


class GatedBranches(nn.Module):
    """The gated sum of the enabled branches. A disabled branch has no parameters, no gate column and no cost."""

    def __init__(self, config: Any, backend: str, dims: HeadDims, layer: int = 0):
        """config: the settings of the method `nsa`. Raises NsaLabError where the named backend cannot compute it."""
        super().__init__()
        reason = None if backend == "auto" else BACKENDS[backend].why_not_design(config, dims.head_dim)
        if reason is not None:
            raise NsaLabError(f"attention.backend={backend} does not run this design: {reason}")
        self.layer, self.backend, self.scale = layer, backend, dims.head_dim**-0.5
        self.branches = nn.ModuleDict({n: BRANCHES[n](own, dims) for n, own in switched_on(config.branches).items()})
        self.compressor: Compressor = build(config.compressor, "kind", dims, longest_block(config.partition))
        self.gate: Gate = build(config.gate, "kind", dims, len(self.branches))
        self.log_length_bias = config.branches.compression.log_length_bias
        standard = (CompressionBranch, SelectionBranch, WindowBranch)
        self.fusible = all(type(branch) in standard for branch in self.branches.values())
        self.needs_pooling = any(branch.needs_pooling for branch in self._named().values())

    def forward(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, context: Context, partition: Partition, trace: Trace
    ) -> Tensor:
        """x [Tq, hidden] attention inputs of the queries, q [Tq, H, D], k and v [T, G, D]; [Tq, H, D]."""
        ops = BACKENDS[choose_backend(self.backend, q.device)]
        fused = self.fusible and ops.fused
        inputs = self._inputs(x, q, k, v, context, partition, ops, trace, pool=self._must_pool(partition, ops, fused))
        gates = self.gate(x).to(q.dtype)
        out = self._fused(inputs, gates) if fused else self._branch_by_branch(inputs, gates)
        self._record(inputs, gates)
        return out

    def _named(self) -> dict[str, Branch]:
        return {name: cast(Branch, branch) for name, branch in self.branches.items()}

    def _must_pool(self, partition: Partition, ops: Backend, fused: bool) -> bool:
        """Whether pooled keys are needed here; a fused call pools by the mean itself."""
        if not self.needs_pooling:
            return False
        selection = self._named().get("selection")
        given = isinstance(selection, SelectionBranch) and not ops.chooses(selection.scorer, selection.rule)
        return not fused or given or not self._plain(partition)

    def _plain(self, partition: Partition) -> bool:
        """Whether a block's key is the mean of its tokens and nothing else."""
        return isinstance(self.compressor, MeanCompressor) and partition.confidence is None

    def _inputs(
        self,
        x: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        context: Context,
        partition: Partition,
        ops: Backend,
        trace: Trace,
        pool: bool,
    ) -> BranchInputs:
        pooled_k, pooled_v = self._pooled(k, v, partition) if pool else (None, None)
        bias = partition.lengths.to(torch.float32).log() if self.log_length_bias else None
        return BranchInputs(
            self.layer, x, q, k, v, pooled_k, pooled_v, bias, context, partition, ops, self.scale, trace
        )

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
        """All branches in one call of the backend, which also chooses the blocks where it can."""
        branches, ops = self._named(), inputs.ops
        selection, window = branches.get("selection"), branches.get("window")
        rule = selection.rule if isinstance(selection, SelectionBranch) else None
        plain, given = self._plain(inputs.partition), None
        if isinstance(selection, SelectionBranch) and not ops.chooses(selection.scorer, selection.rule):
            given = selection.choose(inputs)
        out, blocks = ops.video_nsa(
            inputs.q,
            inputs.k,
            inputs.v,
            gates,
            inputs.context,
            inputs.partition,
            branches=tuple(branches),
            rule=rule,
            window_size=window.config.size if isinstance(window, WindowBranch) else 1,
            pooled=None if plain else cast(Any, (inputs.pooled_k, inputs.pooled_v) if self.needs_pooling else None),
            block_bias=inputs.block_bias,
            scale=self.scale,
            chosen=given,
        )
        if isinstance(selection, SelectionBranch):
            if blocks is None and inputs.trace.wants("choice"):
                blocks = selection.choose(self._with_pooled(inputs))
            selection.record(inputs, blocks)
        return out

    def _with_pooled(self, inputs: BranchInputs) -> BranchInputs:
        if inputs.pooled_k is not None or not self.needs_pooling:
            return inputs
        pooled_k, pooled_v = self._pooled(inputs.k, inputs.v, inputs.partition)
        return replace(inputs, pooled_k=pooled_k, pooled_v=pooled_v)

    def _record(self, inputs: BranchInputs, gates: Tensor) -> None:
        trace, layer = inputs.trace, self.layer
        trace.record(layer, "gates", gates.detach())
        if trace.wants("gate_means") and len(gates):
            means = gates.detach().float().mean((0, 1)).tolist()
            trace.record(layer, "gate_means", dict(zip(self.branches, means, strict=True)))
        if trace.wants("cost"):
            trace.record(layer, "cost", {name: branch.cost(inputs) for name, branch in self._named().items()})
        if trace.wants("inputs"):
            trace.record(layer, "inputs", self._with_pooled(inputs))
