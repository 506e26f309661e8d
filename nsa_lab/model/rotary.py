"""Rotary embeddings whose frequencies stay as precise as they were made, whatever the weights are cast to.

A frequency rounded to bfloat16 is wrong by up to 1 in 512: a thousand positions on, its angle is anybody's.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen


class Precise(nn.Module):
    """A module whose buffers move with it and are never narrowed."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            after = self.get_buffer(name)
            if after.itemsize < buffer.itemsize:
                setattr(self, name, buffer.to(after.device))
        return self


# transformers knows by this part of their names which buffers it has to make again after the meta device.
class PreciseRotaryEmbedding(Precise, qwen.Qwen2_5_VLRotaryEmbedding):
    pass


class PreciseVisionRotaryEmbedding(Precise, qwen.Qwen2_5_VLVisionRotaryEmbedding):
    pass
