"""The cache of a prefill whose layers may have seen different tokens."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from nsa_lab.model.plan import AttentionPlan


class VideoCache(DynamicCache):
    """A DynamicCache whose layers may hold different numbers of prompt tokens, each row's at its end.

    To transformers it is as long as what the model was given (`seen`), whatever a reducer dropped. It knows where the
    tokens after its prompt go on in M-RoPE, whatever the model has read since.
    """

    def __init__(self, config: Any = None):
        super().__init__(config=config)
        self.seen = self.prompt = 0
        self.real: dict[int, Tensor] = {}
        self.deltas = self.padding = torch.zeros(0, 1, dtype=torch.int64)

    def begin(self, ids: Tensor, plan: AttentionPlan) -> None:
        """Keep where tokens after a prompt with the M-RoPE ids [3, B, L] go on: one after the greatest of a row's."""
        rows, (count, length) = plan.layout.rows, plan.batch_shape
        greatest = ids.new_full((count * length,), -1).index_copy(0, rows, ids.amax(0).flatten()[rows])
        tokens = torch.bincount(rows // length, minlength=count)
        self.deltas = (greatest.view(count, length).amax(1) + 1 - tokens)[:, None]
        self.padding = (length - tokens)[:, None]

    def rope_deltas(self, attention_mask: Tensor | None) -> Tensor:
        """[B, 1]: what to add to the number of a later token, counted over attention_mask [B, seen and new] or all."""
        return self.deltas - (self.padding if attention_mask is None else 0)

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

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """As transformers': assisted decoding takes back text that it guessed wrong, at the prompt's end too."""
        before = super().get_seq_length()
        super().crop(*args, **kwargs)
        self.seen -= before - super().get_seq_length()
        guessed = self.prompt - min(self.prompt, self.seen)
        self.prompt -= guessed
        self.real = {layer: real[:, : real.shape[1] - guessed] for layer, real in self.real.items()}

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._rows(lambda x: x[beam_idx.to(x.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._rows(lambda x: x.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._rows(lambda x: x[indices.to(x.device)])

    def _rows(self, choose: Callable[[Tensor], Tensor]) -> None:
        self.real = {layer: choose(real) for layer, real in self.real.items()}
        self.deltas, self.padding = choose(self.deltas), choose(self.padding)
