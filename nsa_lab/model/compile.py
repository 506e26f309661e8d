"""The dense parts under torch.compile: RMSNorm, rotary embedding and both MLPs, with the same weights and names.

Attention stays out: its kernels are one op already, and the text around it changes with every batch. Each part is one
function of its tensors, shared by all layers, whose first dimension (tokens or patches) is dynamic.
"""

import functools
import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

from nsa_lab.errors import NsaLabError
from nsa_lab.model.attention import VideoNSAAttention
from nsa_lab.model.video_nsa import VideoNSAForConditionalGeneration
from nsa_lab.model.vision import WindowedVisionAttention

WORTH = 1024
"""Hidden size from which `auto` compiles: a proxy trains for less time than the compiler takes."""
ALIGNED = 64
"""Columns of the vision MLP are padded to a multiple: cuBLAS has no fast product for Qwen's 3,420."""

log = logging.getLogger(__name__)


def compiles(setting: str, width: int, device: torch.device) -> bool:
    """Whether model.compile compiles a decoder of hidden size `width` on `device`; `auto` says what it does there."""
    if setting != "auto":
        return setting == "true"
    on = device.type == "cuda" and width >= WORTH
    if device.type == "cuda":
        why = "RMSNorm, rotary embedding, MLPs" if on else f"hidden size {width} is below {WORTH}"
        log.info("model.compile=auto on cuda: %s (%s)", "on" if on else "off", why)
    return on


def compile_dense(model: VideoNSAForConditionalGeneration, backend: str = "inductor") -> None:
    """Compile the dense parts of `model` in place; nothing is compiled before the first forward.

    Raises NsaLabError where the MLPs' activation is not SiLU.
    """
    for config in (model.config.text_config, model.config.vision_config):
        if config.hidden_act != "silu":
            raise NsaLabError(
                f"model.compile=true knows MLPs with silu, not {config.hidden_act}; set model.compile=false"
            )
    parts = _Parts(backend)
    # A part is compiled once for each width, dtype and with or without gradients; past this limit it would run eagerly.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    for module in model.modules():
        kind = _KINDS.get(type(module))
        if kind is not None:
            module.__class__, module.parts = kind, parts  # type: ignore[assignment]


class _Parts:
    """The compiled functions. A copy or a pickle of a model shares or makes them anew."""

    def __init__(self, backend: str):
        self.backend = backend
        compiled = functools.partial(torch.compile, backend=backend, fullgraph=True)
        self.rms_norm, self.rotary, self.vision_rotary, self.mlp = map(
            compiled, (_rms_norm, _rotary, qwen.apply_rotary_pos_emb_vision, _mlp)
        )

    def __reduce__(self) -> Any:
        return _Parts, (self.backend,)

    def __deepcopy__(self, memo: Any) -> "_Parts":
        return self


class Compiled:
    """A module whose forward is, or calls, a compiled part."""

    parts: _Parts


class _RMSNorm(Compiled, qwen.Qwen2_5_VLRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.parts.rms_norm(_rows(hidden_states), self.weight, self.variance_epsilon)


class _MLP(Compiled, qwen.Qwen2MLP):
    """Of the decoder, and of the vision tower, whose layers have biases."""

    def forward(self, x: Tensor) -> Tensor:
        layers = (self.gate_proj, self.up_proj, self.down_proj)
        return self.parts.mlp(_rows(x), *(layer.weight for layer in layers), *(layer.bias for layer in layers))


class _Attention(Compiled, VideoNSAAttention):
    def _rotate(self, q: Tensor, k: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self.parts.rotary(*map(_rows, (q, k, *rope)))


class _VisionAttention(Compiled, WindowedVisionAttention):
    def _rotate(self, q: Tensor, k: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self.parts.vision_rotary(*map(_rows, (q, k, *rope)))


_KINDS: dict[type, type] = {
    qwen.Qwen2_5_VLRMSNorm: _RMSNorm,
    qwen.Qwen2MLP: _MLP,
    qwen.Qwen2_5_VLMLP: _MLP,
    VideoNSAAttention: _Attention,
    WindowedVisionAttention: _VisionAttention,
}


def _rows(x: Tensor) -> Tensor:
    """x, whose first dimension the compiler takes as one that changes."""
    torch._dynamo.maybe_mark_dynamic(x, 0)
    return x


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def _rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return qwen.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=-2)


def _mlp(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, gate_bias: Any, up_bias: Any, down_bias: Any) -> Tensor:
    """SiLU-gated MLP; its columns are padded with zeros, which add nothing."""
    missing = -len(gate) % ALIGNED
    if missing:
        gate, up = (F.pad(weight, (0, 0, 0, missing)) for weight in (gate, up))
        gate_bias, up_bias = (None if bias is None else F.pad(bias, (0, missing)) for bias in (gate_bias, up_bias))
        down = F.pad(down, (0, missing))
    return F.linear(F.silu(F.linear(x, gate, gate_bias)) * F.linear(x, up, up_bias), down, down_bias)
