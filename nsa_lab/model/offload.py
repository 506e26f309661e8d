"""Activations in the host's memory: what some layers save for their backward leaves the GPU and comes back.

What a layer saves is copied to pinned memory while the layers up to the next such one are computed, and fetched back
while the backward of the two layers above it runs, on a stream of its own: the GPU waits for copies that are late, the
host never. At most what two such layers save is on the GPU at a time. The numbers that come back are those that left.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.tensor import DTensor

from nsa_lab.errors import NsaLabError

LEAST = 1 << 20
"""Bytes below which a saved tensor stays where it is."""
AHEAD = 2
"""So many layers before its backward a layer's tensors are fetched, and so many after its forward they go at most."""


class Buffer:
    """So many bytes of the host's memory, pinned for a GPU.

    PyTorch's own pinned allocator rounds up to a power of two, which of gigabytes may be half of the machine.
    Raises NsaLabError where the host has no room to pin them.
    """

    def __init__(self, nbytes: int, pin: bool):
        self.bytes = torch.empty(nbytes, dtype=torch.uint8)
        if not pin:
            return
        runtime, address = torch.cuda.cudart(), self.bytes.data_ptr()
        if int(runtime.cudaHostRegister(address, nbytes, 0)):
            gib = nbytes / 2**30
            raise NsaLabError(f"the host has no {gib:.1f} GiB more to pin; lower training.activation_offload")
        weakref.finalize(self, runtime.cudaHostUnregister, address).atexit = False


class _Saved:
    """A storage that has left the GPU: its bytes on the host, and those fetched back. Lives as long as the graph.

    stale: the buffer holds another forward's bytes by now.
    """

    def __init__(self, storage: torch.UntypedStorage, buffer: Buffer):
        self.buffer, self.bytes, self.device = buffer, buffer.bytes[: storage.nbytes()], storage.device
        self.back: Tensor | None = None
        self.stale = False


@dataclass
class _Layer:
    """What one forward of a layer saves, by the storages' addresses, and the buffers that it has used so far.

    over: its backward has given the gradient of its input.
    """

    number: int
    buffers: list[Buffer]
    weights: set[int] = field(default_factory=set)
    used: int = 0
    saved: "weakref.WeakValueDictionary[int, _Saved]" = field(default_factory=weakref.WeakValueDictionary)
    leaving: list[torch.UntypedStorage] = field(default_factory=list)
    sent: Any = None
    over: bool = False

    def end(self, grad: Tensor) -> None:
        self.over = True

    def free_buffers(self) -> list[Buffer]:
        """Those that another forward may have: none while a backward is to come."""
        if self.saved and not self.over:
            return []
        for saved in self.saved.values():  # of nodes that no backward runs through
            saved.stale = True
        return self.buffers

    def host_bytes(self) -> int:
        return sum(buffer.bytes.numel() for buffer in self.buffers)


class Offload:
    """Runs layers whose saved activations are kept on the host; `layers`: all of them, in order.

    `begin(n)` is called before layer n's forward, whether that is offloaded or not, and `watch(n, out)` after it.
    spacing: how many layers on from an offloaded one the next one is.
    """

    def __init__(self, layers: nn.ModuleList):
        self.layers, self.spacing = layers, AHEAD
        self.stream: torch.cuda.Stream | None = None
        self.kept: dict[int, _Layer] = {}
        self.current: _Layer | None = None

    def begin(self, number: int) -> None:
        """Let go of what has left the GPU of layers that are `spacing` below `number`, or of an earlier forward."""
        for other, layer in self.kept.items():
            if not number - self.spacing < other < number:
                self._let_go(layer)

    def run(self, number: int, forward: Callable[..., Tensor], x: Tensor) -> Tensor:
        """forward(x) of layer `number`, offloaded."""
        if self.stream is None and x.device.type == "cuda":
            self.stream = torch.cuda.Stream(x.device)
        before = self.kept.get(number)
        self.current = self.kept[number] = _Layer(number, before.free_buffers() if before else [])
        if x.requires_grad:
            x.register_hook(self.current.end)
        with saved_tensors_hooks(self._pack, self._unpack):
            out = forward(x)
        self.current.sent = self.stream.record_event() if self.stream else None
        return out

    def watch(self, number: int, out: Tensor) -> None:
        """Have the backward of layer `number`, whose output is `out`, fetch what the layers below it need."""
        if out.requires_grad:
            out.register_hook(lambda grad: self._backward_of(number))

    def fits(self, number: int, nbytes: int, limit: float) -> bool:
        """Whether so many bytes of layer `number`, instead of what it takes now, keep within `limit` bytes."""
        now = self.kept.get(number)
        return self.host_bytes() - (now.host_bytes() if now else 0) + nbytes <= limit

    def host_bytes(self) -> int:
        """How much of the host's memory is taken."""
        return sum(layer.host_bytes() for layer in self.kept.values())

    def _pack(self, tensor: Tensor) -> Any:
        layer, storage = self.current, tensor.untyped_storage()
        assert layer is not None
        if not layer.weights:  # those that FSDP has gathered for this forward; before a checkpoint's there are none
            gathered = (p for p in self.layers[layer.number].parameters() if not isinstance(p, DTensor))
            layer.weights |= {p.untyped_storage().data_ptr() for p in gathered}
        address = storage.data_ptr()
        if storage.nbytes() < LEAST or (storage.device.type == "cpu" and self.stream) or address in layer.weights:
            return tensor
        saved = layer.saved.get(address) or self._send(storage, layer)
        return saved, tensor.dtype, tensor.size(), tensor.stride(), tensor.storage_offset()

    def _send(self, storage: torch.UntypedStorage, layer: _Layer) -> _Saved:
        saved = layer.saved[storage.data_ptr()] = _Saved(storage, self._next_buffer(layer, storage.nbytes()))
        layer.leaving.append(storage)
        with self._copying():
            saved.bytes.copy_(_bytes_of(storage), non_blocking=True)
        return saved

    def _next_buffer(self, layer: _Layer, nbytes: int) -> Buffer:
        place, layer.used = layer.used, layer.used + 1
        if place == len(layer.buffers) or layer.buffers[place].bytes.numel() < nbytes:
            layer.buffers[place : place + 1] = []  # the old one first: the host may not have room for both
            layer.buffers.insert(place, Buffer(nbytes, self.stream is not None))
        return layer.buffers[place]

    def _let_go(self, layer: _Layer) -> None:
        if layer.leaving and layer.sent is not None:
            torch.cuda.current_stream().wait_event(layer.sent)
        layer.leaving = []

    def _backward_of(self, number: int) -> None:
        for layer in self.kept.values():
            self._let_go(layer)
        for below in range(number - 1, number - 1 - AHEAD, -1):
            for saved in list(self.kept[below].saved.values()) if below in self.kept else ():
                self._fetch(saved)

    def _fetch(self, saved: _Saved) -> Tensor:
        if saved.back is None:
            saved.back = torch.empty(len(saved.bytes), dtype=torch.uint8, device=saved.device)
            with self._copying():
                saved.back.copy_(saved.bytes, non_blocking=True)
        return saved.back

    def _unpack(self, packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        saved, dtype, size, stride, offset = packed
        if saved.stale:
            raise NsaLabError("a second backward came after another forward; set training.activation_offload=0")
        back = self._fetch(saved)
        if self.stream is not None:
            torch.cuda.current_stream().wait_stream(self.stream)
        return torch.empty(0, dtype=dtype, device=saved.device).set_(back.untyped_storage(), offset, size, stride)

    @contextmanager
    def _copying(self) -> Iterator[None]:
        """On the stream of copies, behind all that has been asked of the GPU so far."""
        if self.stream is None:
            yield
            return
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            yield


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
