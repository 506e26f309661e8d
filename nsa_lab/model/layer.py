"""Sparse attention alone, with plain arguments: for notebooks, and for other models."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nsa_lab.attention.dims import HeadDims
from nsa_lab.attention.sparse import GatedBranches
from nsa_lab.attention.trace import Trace
from nsa_lab.config import attention_from_dict, unflatten
from nsa_lab.errors import ConfigError
from nsa_lab.layout import layout_from_token_ids
from nsa_lab.partition import Partitioner, build_partitioner, sparse_context
from nsa_lab.plugin import at, problems_of, settings

Grid = tuple[int, int, int]
"""Frames, rows and columns of a video in tokens."""


class SparseAttention(nn.Module):
    """The paper's three gated branches (VideoNSA, section 2) over video tokens, causal in time.

    Without `hidden_size` it takes q, k and v and weighs the branches by learned constants; with it, it takes hidden
    states, projects them itself (no rotary embedding) and weighs by the paper's MLP. `design` holds further settings of
    the lab by dotted key below `attention`, such as {"partition.kind": "scene", "branches.window.enabled": False}.
    Raises ConfigError for settings that no layer can have.
    """

    def __init__(
        self,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        hidden_size: int | None = None,
        block_size: int = 64,
        block_count: int = 32,
        window: int = 256,
        backend: str = "auto",
        design: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        plain = {
            "partition.block_size": block_size,
            "branches.selection.block_count": block_count,
            "branches.window.size": window,
            "backend": backend,
            "gate.kind": "constant" if hidden_size is None else "mlp",
        }
        attention = attention_from_dict(unflatten(plain | dict(design or {})))
        problems = list(at("attention", problems_of(attention, "method", attention)))
        if problems:
            raise ConfigError(problems)
        own = settings(attention, "method")
        width = num_kv_heads * head_dim if hidden_size is None else hidden_size
        dims = HeadDims(width, num_heads, num_kv_heads, head_dim)
        self.dims = dims
        self.partitioner: Partitioner = build_partitioner(own.partition, width)
        self.branches = GatedBranches(own, backend, dims)
        if hidden_size is not None:
            self.qkv = nn.Linear(hidden_size, (num_heads + 2 * num_kv_heads) * head_dim)
            self.out = nn.Linear(num_heads * head_dim, hidden_size, bias=False)

    def forward(
        self,
        q: Tensor,
        k: Tensor | None = None,
        v: Tensor | None = None,
        *,
        grid: Grid | Sequence[Grid],
        trace: Trace | None = None,
    ) -> Tensor:
        """q [T, H, D], k and v [T, G, D] to [T, H, D]; or hidden states [T, hidden] alone to the same shape.

        `grid` is the video's, frames x rows x columns = T tokens in time order; a list of grids packs several videos,
        one after the other, that do not see each other. `trace` keeps what it is asked for (see Trace). Raises
        ValueError where the tokens are not those of the grids.
        """
        grids = [grid] if isinstance(grid[0], int) else list(grid)
        tokens = torch.tensor(grids, device=q.device).prod(1)
        if len(q) != int(tokens.sum()):
            raise ValueError(f"{len(q)} tokens, but the grids hold {int(tokens.sum())} ({grids})")
        layout = layout_from_token_ids(
            torch.ones(1, len(q), dtype=torch.int64, device=q.device),
            1,
            torch.tensor(grids),
            text_positions=torch.cat([torch.arange(int(n), device=q.device) for n in tokens])[None],
            spatial_merge=1,
        )
        context = sparse_context(layout, "video")
        if k is None or v is None:
            heads = self.qkv(q).unflatten(-1, (-1, self.dims.head_dim))
            own_q, own_k, own_v = heads.split((self.dims.num_heads, *2 * (self.dims.num_kv_heads,)), 1)
            return self.out(self._attend(q, own_q, own_k, own_v, context, trace).flatten(1))
        return self._attend(k.flatten(1), q, k, v, context, trace)

    def _attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, context: Any, trace: Trace | None) -> Tensor:
        partition = self.partitioner(context, x if self.partitioner.needs_features else None)
        return self.branches(x, q, k, v, context, partition, Trace() if trace is None else trace)
