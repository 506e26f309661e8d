"""flash-linear-attention's `parallel_nsa` as a backend, to compare in place; only where its own rules hold.

It runs compression and selection in one call, always reads the first block and the last two, and wants groups of a
power of two of at least 16 query heads: smaller groups are padded with zero heads, which leaves the choice of blocks as
it is. Its window and dense ops are the Triton path's.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nsa_lab.attention.backends.triton_path import Triton
from nsa_lab.attention.choice import BlockRule
from nsa_lab.errors import NsaLabError
from nsa_lab.partition import Context, Partition

LEAST_GROUP = 16
MOST_HEAD_DIM = 256


class Fla(Triton):
    """fla's `parallel_nsa` for compression and selection; window and dense are the Triton path's."""

    divisible = False

    def why_not(self, device: torch.device, named: bool) -> str | None:
        if not named:
            return "it is for comparison, name it to use it"
        if device.type != "cuda":
            return "it needs a CUDA device"
        if find_spec("fla") is None:
            return "fla is not installed; pip install 'nsa-lab[gpu]'"
        return super().why_not(device, named)

    def why_not_design(self, design: Any, head_dim: int) -> str | None:
        branches, size = design.branches, design.partition.block_size
        selection = branches.selection
        count = selection.block_count
        rules = {
            "it needs branches.compression and branches.selection": branches.compression.enabled and selection.enabled,
            "it needs partition.kind=uniform": design.partition.kind == "uniform",
            "it needs context=video": design.context == "video",
            "it needs compressor.kind=mean": design.compressor.kind == "mean",
            "it has no log_length_bias": not branches.compression.log_length_bias,
            "it chooses by scorer=compression and rule=top_n": (selection.scorer, selection.rule)
            == ("compression", "top_n"),
            "it forces the first block: branches.selection.initial_blocks=1": selection.initial_blocks == 1,
            "it forces the last two blocks: branches.selection.local_blocks=2": selection.local_blocks == 2,
            "each query chooses alone: branches.selection.query_tile=1": selection.query_tile == 1,
            "it needs partition.block_size to be a power of two of at least 16": size >= LEAST_GROUP
            and _power_of_two(size) == size,
            "it needs partition.block_size to be at least twice block_count, rounded up to a power of two": size
            >= 2 * _power_of_two(count),
            f"it needs a head dim of at most {MOST_HEAD_DIM}": head_dim <= MOST_HEAD_DIM,
        }
        broken = [rule for rule, holds in rules.items() if not holds]
        return broken[0] if broken else None

    def video_nsa(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gates: Tensor,
        context: Context,
        partition: Partition,
        *,
        branches: Sequence[str],
        rule: BlockRule | None,
        window_size: int,
        pooled: tuple[Tensor, Tensor] | None,
        block_bias: Tensor | None,
        scale: float,
        chosen: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """See Backend.video_nsa; fla keeps the blocks that it chose to itself.

        Raises NsaLabError where a sample's blocks are not uniform from its first token (two videos in one sample).
        """
        from fla.ops.nsa import parallel_nsa

        from nsa_kernels import autocast

        assert rule is not None  # why_not_design
        heads, groups = q.shape[1], k.shape[1]
        # Where every sample is shorter than a block its size is not known here, and any that fits gives the same.
        block_size = max(LEAST_GROUP, _power_of_two(partition.max_length), 2 * _power_of_two(rule.block_count))
        if not _uniform(context, partition, block_size):
            raise NsaLabError(
                "attention.backend=fla cuts blocks from the start of each sample, but a sample of this batch holds "
                "several videos; use attention.backend=auto"
            )
        width = max(LEAST_GROUP, _power_of_two(heads // groups))
        cast = autocast(q, k, v, gates)
        rows = _pad_groups(cast[0], groups, width)
        columns = [_pad_groups(cast[3][:, :, i, None], groups, width)[..., 0] for i in (0, 1)]
        out = parallel_nsa(
            rows[None], cast[1][None], cast[2][None], g_cmp=columns[0][None], g_slc=columns[1][None],
            block_counts=rule.block_count, block_size=block_size, window_size=0, scale=scale,
            cu_seqlens=context.cu_seqlens,
        )[0]  # fmt: skip
        out = out.unflatten(1, (groups, width))[:, :, : heads // groups].flatten(1, 2)
        if "window" in branches:
            out = out + gates[:, :, 2, None] * self.window(q, k, v, context, size=window_size, scale=scale)
        return out.to(q.dtype), None


def _uniform(context: Context, partition: Partition, block_size: int) -> bool:
    """Whether each sample's blocks have `block_size` tokens, all but its last."""
    last = torch.isin(partition.offsets[1:], context.cu_seqlens)
    return partition.perm is None and bool(((partition.lengths == block_size) | last).all())


def _pad_groups(x: Tensor, groups: int, width: int) -> Tensor:
    """[T, H, n] to [T, G * width, n]: zero heads at the end of each group."""
    rows = x.unflatten(1, (groups, -1))
    return F.pad(rows, (0, 0, 0, width - rows.shape[2])).flatten(1, 2).contiguous()


def _power_of_two(n: int) -> int:
    """The next power of two."""
    return 1 << max(n - 1, 0).bit_length()
