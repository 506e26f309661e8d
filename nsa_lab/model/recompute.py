"""Activation checkpointing by policy: what a decoder layer keeps for its backward, and what it computes again.

Policies, of `training.recompute`. `full` keeps a layer's input [T, hidden]. `selective` keeps besides what attention
returned (its output, and what its op saved for the backward) and the products no wider than the hidden size (queries,
keys, values, output projection, gates); norms, rotary embedding and the MLP's wide products are computed again.
`auto` keeps what the GPU has room for: attention's results first, of which a byte spares the most time, then the narrow
products, then everything. Given memory of the host (`training.activation_offload`), the vision tower's inputs are kept
there, and everything of as many decoder layers as go in (offload.py). The vision tower is computed again, whole.

By their shapes, at 7B in bf16 with three branches, a token keeps 7 KiB in a layer (full), about 50 (selective), about
160 (everything); `auto` measures them in its first forward.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from nsa_lab.errors import NsaLabError
from nsa_lab.model.compile import Compiled
from nsa_lab.model.context_parallel import ContextGroup
from nsa_lab.model.offload import Offload
from nsa_lab.model.video_nsa import VideoNSAForConditionalGeneration

FREE = 0.05
"""The share of a GPU's memory that `auto` leaves alone: fragments, and what kernels need for a moment."""
SHORT = 0.02
"""So much more of it whenever PyTorch's allocator had to give memory back before it found room, for which it waits."""
MORE = ("attention", "selective", "everything")
"""What `auto` lets a layer keep besides its input, each more than the one before."""

log = logging.getLogger(__name__)


def recompute_activations(
    model: VideoNSAForConditionalGeneration, policy: str, group: ContextGroup | None = None, host: float = 0.0
) -> None:
    """Turn activation checkpointing on: `policy` (full, selective or auto) for decoder layers, full for vision.

    host: bytes of the host's memory that `auto` may fill besides. Processes that share each sample, those of `group`,
    keep what the one with the least room can.

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
    if host > (free := psutil.virtual_memory().available):
        raise NsaLabError(
            f"training.activation_offload={host / 2**30:.10g} GiB, but this host has {free / 2**30:.0f} GiB to spare; "
            "lower it"
        )
    layers = model.model.language_model.layers
    vision = _vision_offload(model.model.visual.blocks, host) if host else None
    memory = Memory(len(layers), group, host, vision) if policy == "auto" else None
    offload = Offload(layers) if host else None
    for number, layer in enumerate(layers):
        if policy != "full":
            layer._gradient_checkpointing_func = functools.partial(_layer, number, memory, offload)


def _vision_offload(blocks: nn.ModuleList, host: float) -> Offload:
    offload = Offload(blocks)
    block: Any
    for number, block in enumerate(blocks):
        block._gradient_checkpointing_func = functools.partial(_block, number, offload, host)
    return offload


def _compiles_inside() -> bool:
    """Whether what is compiled stays so inside a selective checkpoint: older releases of PyTorch turn it off."""
    modes: Any = create_selective_checkpoint_contexts([])
    return all(getattr(mode, "ignore_compile_internals", lambda: False)() for mode in modes)


class Memory:
    """How many decoder layers, the deepest first, may keep more than their input.

    The first forward keeps inputs alone but in its last layers, where it measures what the other ways keep. Each later
    one may keep so much more as PyTorch's peak so far has left free: whatever else a step needs, such as gradients,
    weights that FSDP gathers or the vision tower's backward, is in that peak. A batch longer than all before it begins
    anew. Deep layers keep the most, for they are the first to be freed in the backward.

    In what `vision` leaves of `host` bytes of the host's memory, `away` layers keep everything, spread evenly over all
    but the last, so that each has the time of several layers to be copied.
    """

    def __init__(
        self, layers: int, group: ContextGroup | None = None, host: float = 0.0, vision: Offload | None = None
    ):
        self.layers, self.group, self.host, self.vision = layers, group, host, vision
        self.away = 0
        self.kept: dict[str, float] = {}
        self.counts = dict.fromkeys(MORE, 0)
        self.longest = 0
        self.spent = self.base = 0.0
        self.free, self.retries = FREE, 0
        self.said = ""

    def plan(self, x: Tensor) -> None:
        """Before the first layer, whose input is x [T, hidden]."""
        if x.device.type != "cuda":
            self._say(f"training.recompute=auto on {x.device.type}: inputs alone are kept (full)")
            return
        free, total = torch.cuda.mem_get_info(x.device)
        others = total - free - torch.cuda.memory_reserved(x.device)
        if self.vision:
            self.vision.begin(0)
        retries = torch.cuda.memory_stats(x.device)["num_alloc_retries"]
        self.free += SHORT * (retries > self.retries)
        self.retries = retries
        left = (1 - self.free) * total - others - torch.cuda.max_memory_allocated(x.device)
        if self.settle(left, torch.cuda.memory_allocated(x.device), len(x), x.element_size() * x.shape[1]):
            torch.cuda.reset_peak_memory_stats(x.device)
        if self.group:  # what a layer computes again it gathers again, in which all take part
            self.away, *counts = self.group.least(self.away, *self.counts.values())
            self.counts = dict(zip(MORE, counts, strict=True))
            self.count(len(x), x.element_size() * x.shape[1])
        if any(self.counts.values()):
            layers = ", ".join(f"{count} {way}" for way, count in self.counts.items())
            away = f"; {self.away} keep everything in the host's memory" if self.away else ""
            self._say(
                f"training.recompute=auto: with {len(x)} tokens so many of {self.layers} layers keep at least: "
                f"{layers}{away}"
            )

    def settle(self, left: float, base: float, tokens: int, width: int) -> bool:
        """Choose `counts` for so many tokens, an input `width` bytes, where the peak so far has `left` bytes free.

        base: bytes in use before the first layer, which at the peak were the most that they had ever been. True where
        the peak so far says nothing of this batch, longer than those before, and is to be measured anew.
        """
        more, self.base = max(0.0, base - self.base), max(base, self.base)
        if tokens > self.longest:
            self.counts, self.longest, self.spent, self.away = dict.fromkeys(MORE, 0), tokens, 0.0, 0
            return True
        if len(self.kept) == len(MORE):
            everything, before = self.kept["everything"] * self.longest, self.away
            host = self.host - (self.vision.host_bytes() if self.vision else 0)
            self.away = min(int(host / everything), (self.layers - 1) // 2)
            under_way = 2 * everything if self.away > before else 0.0  # in the peaks from the next step on
            self.counts = self.fit(self.spent + left - more - under_way, tokens, width)
            self.count(tokens, width)
        return False

    def count(self, tokens: int, width: int) -> None:
        """Remember what `counts` spends, beyond the inputs, on a batch as long as the longest."""
        if tokens == self.longest and len(self.kept) == len(MORE):
            ways = [self.way(number) for number in range(self.layers)]
            self.spent = tokens * sum(self.kept.get(way, 0.0) - width for way in ways if way != "full")

    def fit(self, room: float, tokens: int, width: int) -> dict[str, int]:
        """How many layers keep each of MORE or more, in `room` bytes beyond the inputs; the deepest one everything."""
        room -= tokens * (self.kept["everything"] - width)
        if room < 0:
            return dict.fromkeys(MORE, 0)
        others, before, counts = self.layers - self.away - 1, float(width), {}
        for way in MORE:
            more = tokens * max(self.kept[way] - before, 1.0)
            others = min(others, int(room / more))
            room, before, counts[way] = room - others * more, self.kept[way], 1 + others
        return counts

    @property
    def spacing(self) -> int:
        return spacing(self.layers, self.away)

    def way(self, number: int) -> str:
        """What layer `number` keeps: full, one of MORE, or everything on the host (offload)."""
        if number % self.spacing == 0 and number < self.spacing * self.away:
            return "offload"
        behind = self.layers - number - max(0, self.away - 1 - number // self.spacing)
        return next((way for way in reversed(MORE) if behind <= self.counts[way]), "full")

    def trial(self, number: int) -> str | None:
        """What layer `number` is to keep for the first time, and to be measured; None where all is known."""
        place = number - (self.layers - len(MORE))
        return MORE[place] if place >= 0 and MORE[place] not in self.kept else None

    def tried(self, way: str, kept: float, x: Tensor) -> None:
        """A layer that keeps so, whose input is x [T, hidden], has kept so many bytes."""
        self.kept[way] = kept / len(x)
        self.spent += kept - x.nbytes

    def _say(self, line: str) -> None:
        if self.said != line:
            log.info(line)
        self.said = line


def spacing(layers: int, away: int) -> int:
    """From one of `away` layers that keep everything on the host to the next."""
    return max(1, (layers - 1) // max(1, away))


def _layer(
    number: int, memory: Memory | None, offload: Offload | None, forward: Callable[..., Tensor], x: Tensor
) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(x)
    if memory is None:
        return _run("selective", forward, x)
    if number == 0:
        memory.plan(x)
    if offload is None:
        return _by_memory(number, memory, forward, x)
    offload.spacing = memory.spacing
    offload.begin(number)
    way = memory.way(number)
    out = offload.run(number, forward, x) if way == "offload" else _by_memory(number, memory, forward, x)
    offload.watch(number, out)
    return out


def _block(number: int, offload: Offload, host: float, forward: Callable[..., Tensor], x: Tensor) -> Tensor:
    """A block of the vision tower, of which its input is kept, on the host so far as that has room."""
    again = functools.partial(checkpoint, forward, use_reentrant=False)
    if not torch.is_grad_enabled() or x.device.type != "cuda":
        return again(x)
    offload.begin(number)
    out = offload.run(number, again, x) if offload.fits(number, x.nbytes, host) else again(x)
    offload.watch(number, out)
    return out


def _by_memory(number: int, memory: Memory, forward: Callable[..., Tensor], x: Tensor) -> Tensor:
    trial = memory.trial(number)
    if trial is None or x.device.type != "cuda":
        return _run(memory.way(number), forward, x)
    before = torch.cuda.memory_allocated(x.device)
    out = _run(trial, forward, x)
    memory.tried(trial, torch.cuda.memory_allocated(x.device) - before, x)
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
