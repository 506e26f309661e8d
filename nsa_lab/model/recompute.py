"""Activation checkpointing by policy: what a decoder layer keeps for its backward, and what it computes again.

Policies, of `training.recompute`. `full` keeps a layer's input [T, hidden]. `selective` keeps besides what attention
returned (its output, and what its op saved for the backward) and the products no wider than the hidden size (queries,
keys, values, output projection, gates); norms, rotary embedding and the MLP's wide products are computed again.
`auto` keeps what the GPU has room for. The vision tower is always computed again, whole.

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
from nsa_lab.model.context_parallel import ContextGroup
from nsa_lab.model.video_nsa import VideoNSAForConditionalGeneration

FREE = 0.06
"""The share of a GPU's memory that `auto` leaves alone: fragments, and what kernels need for a moment."""

log = logging.getLogger(__name__)


def recompute_activations(
    model: VideoNSAForConditionalGeneration, policy: str, group: ContextGroup | None = None
) -> None:
    """Turn activation checkpointing on: `policy` (full, selective or auto) for decoder layers, full for vision.

    Processes that share each sample, those of `group`, keep what the one with the least room can.

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
    memory = Memory(len(layers), group) if policy == "auto" else None
    for number, layer in enumerate(layers):
        if policy != "full":
            layer._gradient_checkpointing_func = functools.partial(_layer, number, memory)


def _compiles_inside() -> bool:
    """Whether what is compiled stays so inside a selective checkpoint: older releases of PyTorch turn it off."""
    modes: Any = create_selective_checkpoint_contexts([])
    return all(getattr(mode, "ignore_compile_internals", lambda: False)() for mode in modes)


class Memory:
    """How many decoder layers, the deepest first, may keep more than their input.

    The first forward keeps inputs alone but in its last two layers, where it measures what the other two ways keep.
    Deep layers are the first to be freed in the backward: while it makes gradients, memory never rises above what it
    had at its begin or will have at its end. The layer whose backward runs needs room for all that it computes again,
    and for as much in gradients.
    """

    def __init__(self, layers: int, group: ContextGroup | None = None):
        self.layers, self.group = layers, group
        self.kept: dict[str, float] = {}
        self.selective = self.everything = 0
        self.said = False

    def plan(self, x: Tensor) -> None:
        """Before the first layer, whose input is x [T, hidden]."""
        if x.device.type != "cuda":
            self._say(f"training.recompute=auto on {x.device.type}: inputs alone are kept (full)")
        elif len(self.kept) == 2:
            free, total = torch.cuda.mem_get_info(x.device)
            free += torch.cuda.memory_reserved(x.device) - torch.cuda.memory_allocated(x.device)
            fit = self.fit(free - FREE * total, len(x), x.element_size() * x.shape[1])
            # What a layer computes again it gathers again, in which all take part.
            self.selective, self.everything = self.group.least(*fit) if self.group else fit
            self._say(
                f"training.recompute=auto: with {len(x)} tokens {self.everything} of {self.layers} layers keep "
                f"everything, {self.selective - self.everything} attention and narrow products, the others their input"
            )

    def fit(self, free: float, tokens: int, width: int) -> tuple[int, int]:
        """Layers that keep attention or more, and those that keep everything, in `free` bytes; an input is `width`."""
        room = free / tokens - 2 * self.kept["everything"] - self.layers * width
        more = max(self.kept["selective"] - width, 1.0)
        selective = min(self.layers, max(0, int(room / more)))
        room -= selective * more
        most = max(self.kept["everything"] - self.kept["selective"], 1.0)
        return selective, min(selective, max(0, int(room / most)))

    def way(self, number: int) -> str:
        """What layer `number` keeps: full, selective or everything."""
        behind = self.layers - number
        if self.kept:
            return "everything" if behind <= self.everything else "selective" if behind <= self.selective else "full"
        return "full"

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
    measured = ("selective", "everything")[number - memory.layers] if number >= memory.layers - 2 else None
    if measured is None or measured in memory.kept or x.device.type != "cuda":
        return _run(memory.way(number), forward, x)
    before = torch.cuda.memory_allocated(x.device)
    out = _run(measured, forward, x)
    memory.kept[measured] = (torch.cuda.memory_allocated(x.device) - before) / len(x)
    return out


def _run(way: str, forward: Callable[..., Tensor], x: Tensor) -> Tensor:
    if way == "everything":
        return forward(x)
    if way == "full":
        return checkpoint(forward, x, use_reentrant=False)
    contexts = functools.partial(create_selective_checkpoint_contexts, functools.partial(_keeps, x.shape[-1]))
    return checkpoint(forward, x, use_reentrant=False, context_fn=contexts)


def _keeps(width: int, context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Whether `selective` keeps what `op` returns in a layer of hidden size `width`."""
    name = op.name() if hasattr(op, "name") else ""
    if name.startswith("nsa_kernels::") or "scaled_dot_product" in name:
        return CheckpointPolicy.MUST_SAVE
    if name in ("aten::mm", "aten::addmm") and max(args[-1].shape) <= width:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
