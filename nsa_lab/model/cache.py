"""The cache of a prefill whose layers may have seen different tokens."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from nsa_lab.model.plan import AttentionPlan


class VideoCache(DynamicCache):
    """A DynamicCache whose layers may hold different numbers of prompt tokens, each row's at its end.

    To transformers it is as long as what the model was given (`seen`), whatever a reducer dropped.
    """

    def __init__(self, config: Any = None):
        super().__init__(config=config)
        self.seen = self.prompt = 0
        self.real: dict[int, Tensor] = {}

    def fill(self, layer: int, k: Tensor, v: Tensor, plan: AttentionPlan) -> None:
        """Keep a prefill's keys and values [T, G, D] of `layer`."""
        super().update(plan.align(k).transpose(1, 2), plan.align(v).transpose(1, 2), layer)
        self.real[layer] = plan.right_aligned[1]
        self.seen = self.prompt = plan.batch_shape[1]

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Append new tokens [B, G, n, D]; all keys and values of the layer."""
        if layer_idx == 0:
            self.seen += key_states.shape[2]
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def real_keys(self, layer: int, count: int, padding: Tensor | None) -> Tensor:
        """[B, count] bool: which of the layer's `count` keys are tokens; padding [B, seen] says so of later ones."""
        real = self.real[layer]
        later = count - real.shape[1]
        if padding is None:
            return torch.cat([real, real.new_ones(len(real), later)], 1)
        return torch.cat([real, padding[:, self.prompt : self.prompt + later].bool()], 1)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens that the model was given, dropped ones included."""
        return self.seen

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self.real = {layer: real[beam_idx.to(real.device)] for layer, real in self.real.items()}

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.real = {layer: real.repeat_interleave(repeats, 0) for layer, real in self.real.items()}

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.real = {layer: real[indices] for layer, real in self.real.items()}
