"""What a forward keeps for its backward, in bytes, as transformers' Qwen2.5-VL and the kernels save it.

e: bytes of a number in the compute dtype. `compiled` is RMSNorm, rotary embedding and MLPs under torch.compile, which
save their inputs and compute the rest again.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from nsa_lab.scale.load import Load
from nsa_lab.scale.shape import Widths, branches_of

FULL = 4
"""Bytes of float32: RMSNorm computes in it, and so are logits and log-sum-exps."""


@dataclass(frozen=True)
class Layer:
    """What one layer saves for the micro-batch, in bytes.

    input: its input, and as much the residual after attention. attention: queries, keys, values, what the op keeps and
    its output; results: these two alone. norms: what RMSNorms save, their outputs included; `residuals`, where they
    save their inputs as they are. product: one wide product's gradient, which stands beside these in the backward.
    """

    input: float
    attention: float
    results: float
    norms: float
    residuals: float
    gates: float
    mlp: float
    product: float

    @property
    def saved(self) -> float:
        """Without checkpointing."""
        return self.attention + self.residuals + self.again

    @property
    def again(self) -> float:
        """What a selective policy computes again: all but attention and the two residuals."""
        return self.norms + self.gates + self.mlp

    def kept(self, way: str) -> float:
        """On the GPU until the layer's backward; `way` as in training.recompute=auto (see Setup.each)."""
        return {
            "everything": self.saved,
            "selective": 2 * self.input + self.attention,
            "attention": self.input + self.results,
            "full": self.input,
            "offload": 0.0,
        }[way]

    def passing(self, way: str) -> float:
        """More than that, during it; what comes back from the host is counted apart."""
        most = self.attention + self.residuals / 2 + self.again
        beside = {"selective": self.again, "attention": most - self.results, "full": most}
        return beside.get(way, 0.0) + self.product


def decoder_layer(widths: Widths, design: Any, load: Load, e: int, compiled: bool, gate: float) -> Layer:
    """One decoder layer of `design`, whose gate saves `gate` bytes of a video token."""
    tokens = load.tokens
    return Layer(
        input=e * widths.hidden * tokens,
        attention=attention(widths, design, load, e),
        results=results(widths, design, load, e),
        norms=2 * norm(widths.hidden, e, compiled) * tokens,
        residuals=2 * e * widths.hidden * tokens if compiled else 0.0,
        gates=gate * load.video,
        mlp=(2 if compiled else 4) * e * widths.intermediate * tokens,
        product=e * widths.intermediate * tokens,
    )


def vision_layer(widths: Widths, load: Load, e: int, compiled: bool) -> Layer:
    """One block of the vision tower."""
    patches = widths.patches * load.video
    stream = e * widths.vision_hidden * patches
    return Layer(
        input=stream,
        attention=6 * stream + FULL * widths.vision_heads * patches,
        results=stream + FULL * widths.vision_heads * patches,
        norms=2 * norm(widths.vision_hidden, e, compiled) * patches,
        residuals=2 * stream if compiled else 0.0,
        gates=0.0,
        mlp=(2 if compiled else 4) * e * widths.vision_intermediate * patches,
        product=e * widths.vision_intermediate * patches,
    )


def norm(width: int, e: int, compiled: bool) -> float:
    """RMSNorm of one token: its output, the root, and unless compiled its input in float32 and what it scales."""
    return e * width + FULL + (0 if compiled else (FULL + e) * width)


def attention(widths: Widths, design: Any, load: Load, e: int) -> float:
    """Queries, keys, values, output and what the attention op keeps."""
    row = e * widths.heads * widths.head_dim
    pair = 2 * e * widths.groups * widths.head_dim
    branches = branches_of(design)
    if not branches and load.context > 1:
        return (3 * row + FULL * widths.heads) * load.tokens + pair * load.keys
    if not branches:  # PyTorch's attention is given keys and values for each head, and its output is copied
        return (5 * row + FULL * widths.heads) * load.tokens
    # Keys and values are saved twice: as the video's own, and as all tokens', which the text rows read.
    given = row * load.tokens + 2 * pair * load.keys + e * widths.heads * len(branches) * load.video
    return given + results(widths, design, load, e)


def results(widths: Widths, design: Any, load: Load, e: int) -> float:
    """What the attention op makes: its output, and what it keeps for its backward."""
    row, branches = e * widths.heads * widths.head_dim, branches_of(design)
    if not branches:
        return (row + FULL * widths.heads) * load.tokens
    blocks = load.samples * load.video_tokens / design.partition.block_size
    kept = len(branches) * (row + FULL * widths.heads) * load.video
    kept += FULL * widths.groups * design.branches.selection.block_count * load.video * ("selection" in branches)
    return row * load.tokens + kept + 2 * e * widths.groups * widths.head_dim * blocks


def gathering(widths: Widths, load: Load, e: int) -> float:
    """What gathers the keys and values that GPUs share takes for a moment; its gradient, summed in float32, most."""
    numbers = 2 * widths.groups * widths.head_dim * load.keys
    return (FULL + e) * numbers if load.context > 1 else 0.0


def around_vision(widths: Widths, load: Load, e: int) -> float:
    """What patch embedding and merger save."""
    patches = widths.patches * load.video
    merged = 2 * e * widths.patches * widths.vision_hidden * load.video
    return e * widths.patch_inputs * patches + norm(widths.vision_hidden, e, False) * patches + merged


def around_decoder(widths: Widths, load: Load, e: int) -> float:
    """What the last norm saves."""
    return norm(widths.hidden, e, False) * load.tokens


def held(widths: Widths, load: Load, e: int) -> float:
    """What no backward needs and the caller holds: pixels in float32, the embeddings, packed and not."""
    pixels = FULL * widths.patch_inputs * widths.patches * load.video if e < FULL else 0
    return pixels + 2 * e * widths.hidden * load.tokens


def logits(widths: Widths, rows: int, e: int) -> float:
    """Logits of `rows` tokens: in the compute dtype, in float32, their log-softmax, and the gradient."""
    return rows * widths.vocabulary * (e + 3 * FULL)


def gate_bytes(gate: nn.Module, hidden: int, e: int) -> float:
    """What the gate saves of one video token, its input included."""
    rows = 64
    own = copy.deepcopy(gate).to("meta", _dtype(e))
    x = torch.empty(rows, hidden, device="meta", dtype=_dtype(e), requires_grad=True)
    return saved_bytes(lambda: own(x), skip=own.parameters()) / rows


def saved_bytes(forward: Callable[[], Any], skip: Iterable[torch.Tensor]) -> int:
    """Bytes of the tensors that `forward()` saves for its backward, each storage once, those of `skip` left out."""
    own = {_place(tensor) for tensor in skip}
    kept: dict[Any, int] = {}
    held: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        place = _place(tensor)
        if place not in own:
            held.append(tensor)  # or its storage could be given to another
            kept[place] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    del output
    return sum(kept.values())


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _dtype(e: int) -> torch.dtype:
    return torch.float32 if e == FULL else torch.bfloat16
