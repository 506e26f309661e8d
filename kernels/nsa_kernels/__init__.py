"""Triton kernels of native sparse attention, forward and backward: packed samples, any head layout, any blocks.

Without triton this package still imports, and says what is missing when an op is asked for.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from nsa_kernels.blocks import Blocks, blocks_from_offsets, uniform_blocks
from nsa_kernels.mixed_precision import autocast

if TYPE_CHECKING or find_spec("triton") is not None:
    from nsa_kernels.combine.op import combine_branches
    from nsa_kernels.compression.op import compression_attention, compression_lse, pool_blocks
    from nsa_kernels.runtime import why_not
    from nsa_kernels.selection.op import selection_attention
    from nsa_kernels.topk.op import choose_blocks
    from nsa_kernels.video_nsa import kept_bytes, video_nsa, video_nsa_with_blocks
    from nsa_kernels.window.op import window_attention

__all__ = [
    "Blocks",
    "autocast",
    "blocks_from_offsets",
    "choose_blocks",
    "combine_branches",
    "compression_attention",
    "compression_lse",
    "kept_bytes",
    "pool_blocks",
    "selection_attention",
    "uniform_blocks",
    "video_nsa",
    "video_nsa_with_blocks",
    "why_not",
    "window_attention",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        raise ImportError(f"nsa_kernels.{name} needs triton, which is not installed; pip install 'triton>=3.6'")
    raise AttributeError(f"module 'nsa_kernels' has no attribute '{name}'")
