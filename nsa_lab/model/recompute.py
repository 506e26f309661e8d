"""Activation checkpointing by policy: what a decoder layer keeps for its backward, and what it computes again.

Policies, of `training.recompute`. `full` keeps a layer's input [T, hidden]. `selective` keeps besides what attention
returned (its output, and what its op saved for the backward) and the products no wider than the hidden size (queries,
keys, values, output projection, gates); norms, rotary embedding and the MLP's wide products are computed again.
`auto` keeps what the GPU has room for: attention's results first, of which a byte spares the most time, then the narrow
products, then everything. The vision tower is always computed again, whole.

By their shapes, at 7B in bf16 with three branches, a token keeps 7 KiB in a layer (full), about 50 (selective), about
160 (everything); `auto` measures them in its first forward.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from nsa_lab.errors import NsaLabError
from nsa_lab.model.compile import Compiled
from nsa_lab.model.video_nsa import VideoNSAForConditionalGeneration

FREE = 0.04
"""The share of a GPU's memory that `auto` leaves alone: fragments, and what kernels need for a moment."""
MORE = ("attention", "selective", "everything")
"""What `auto` lets a layer keep besides its input, each more than the one before."""

log = logging.getLogger(__name__)


def recompute_activations(model: VideoNSAForConditionalGeneration, policy: str) -> None:
    """Turn activation checkpointing on: `policy` (full, selective or auto) for decoder layers, full for vision.

    Raises NsaLabError where this PyTorch would run compiled parts eagerly under a policy other than full.
    """
    if policy != "full" and any(isinstance(module, Compiled) for module in model.modules()) and not _compiles_inside():
        raise NsaLabError(
            f"training.recompute={policy} would run compiled parts eagerly with torch {torch.__version__}; set "
            "training.recompute=full, or model.compile=false"
        )
    # transformers renamed it in 5.23; both names are within the supported range.
    enable: Any = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    layers = model.model.language_model.layers
    memory = Memory(len(layers)) if policy == "auto" else None
    for number, layer in enumerate(layers):
        if policy != "full":
            layer._gradient_checkpointing_func = functools.partial(_layer, number, memory)


def _compiles_inside() -> bool:
    """Whether what is compiled stays so inside a selective checkpoint: older releases of PyTorch turn it off."""
    modes: Any = create_selective_checkpoint_contexts([])
    return all(getattr(mode, "ignore_compile_internals", lambda: False)() for mode in modes)


class Memory:
    """How many decoder layers, the deepest first, may keep more than their input.

    The first forward keeps inputs alone but in its last layers, where it measures what the other ways keep.
    Deep layers are the first to be freed in the backward: while it makes gradients, memory never rises above what it
    had at its begin or will have at its end. The layer whose backward runs needs room for all that it computes again,
    and for as much in gradients; the deepest layer keeps everything in that room.
    """

    def __init__(self, layers: int):
        self.layers = layers
        self.kept: dict[str, float] = {}
        self.counts = dict.fromkeys(MORE, 0)
        self.said = False

    @property
    def measured(self) -> bool:
        """Whether every way has been tried."""
        return len(self.kept) == len(MORE)

    def plan(self, x: Tensor) -> None:
        """Before the first layer, whose input is x [T, hidden]."""
        if x.device.type != "cuda":
            self._say(f"training.recompute=auto on {x.device.type}: inputs alone are kept (full)")
        elif self.measured:
            free, total = torch.cuda.mem_get_info(x.device)
            free += torch.cuda.memory_reserved(x.device) - torch.cuda.memory_allocated(x.device)
            self.counts = self.fit(free - FREE * total, len(x), x.element_size() * x.shape[1])
            layers = ", ".join(f"{count} {way}" for way, count in self.counts.items())
            self._say(
                f"training.recompute=auto: with {len(x)} tokens so many of {self.layers} layers keep at least: {layers}"
            )

    def fit(self, free: float, tokens: int, width: int) -> dict[str, int]:
        """How many layers keep each of MORE or more, in `free` bytes; a token's input has `width`."""
        others, before, counts = self.layers - 1, float(width), {}
        room = free / tokens - 2 * self.kept["everything"] - others * width
        for way in MORE:
            more = max(self.kept[way] - before, 1.0)
            upgraded = min(others, max(0, int(room / more)))
            room, before, others, counts[way] = room - upgraded * more, self.kept[way], upgraded, 1 + upgraded
        return counts

    def way(self, number: int) -> str:
        """What layer `number` keeps: full, or one of MORE."""
        behind = self.layers - number
        return next((way for way in reversed(MORE) if behind <= self.counts[way]), "full")

    def trial(self, number: int) -> str | None:
        """What layer `number` is to keep for the first time, and to be measured; None where all is known."""
        place = number - (self.layers - len(MORE))
        return MORE[place] if place >= 0 and MORE[place] not in self.kept else None

    def _say(self, line: str) -> None:
        if not self.said:
            log.info(line)
        self.said = True


def _layer(number: int, memory: Memory | None, forward: Callable[..., Tensor], x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(x)
    if memory is None:
        return _run("selective", forward, x)
    if number == 0:
        memory.plan(x)
    trial = memory.trial(number)
    if trial is None or x.device.type != "cuda":
        return _run(memory.way(number), forward, x)
    before = torch.cuda.memory_allocated(x.device)
    out = _run(trial, forward, x)
    memory.kept[trial] = (torch.cuda.memory_allocated(x.device) - before) / len(x)
    return out


def _run(way: str, forward: Callable[..., Tensor], x: Tensor) -> Tensor:
    if way == "everything":
        return forward(x)
    if way == "full":
        return checkpoint(forward, x, use_reentrant=False)
    keeps = functools.partial(_keeps, x.shape[-1] if way == "selective" else 0)
    contexts = functools.partial(create_selective_checkpoint_contexts, keeps)
    return checkpoint(forward, x, use_reentrant=False, context_fn=contexts)


def _keeps(width: int, context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Whether what `op` returns is kept: attention's results, and products no wider than `width`."""
    name = op.name() if hasattr(op, "name") else ""
    if name.startswith("nsa_kernels::") or "scaled_dot_product" in name:
        return CheckpointPolicy.MUST_SAVE
    if name in ("aten::mm", "aten::addmm") and max(args[-1].shape) <= width:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
