"""Which layers share a partition, the partitioners that make them, and what is said of them."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from nsa_lab.attention.trace import Trace
from nsa_lab.config import AttentionConfig
from nsa_lab.partition import PARTITIONERS, Partition, Partitioner, build_partitioner
from nsa_lab.plugin import settings


@dataclass(frozen=True)
class Slot:
    """One partition of a forward: its kind, the keys it is made over and the layers that read it, ascending."""

    kind: str
    context: Literal["video", "all"]
    layers: list[int]

    def first_layer(self, begin: int = 0) -> int:
        """The first layer from `begin` on that reads it."""
        return next(layer for layer in self.layers if layer >= begin)


class LayerPartitions(nn.Module):
    """One partitioner per distinct partition. Layers with equal settings, of one group, share it.

    slot_of_layer: the number of the partitioner of each layer whose method reads a partition.
    """

    def __init__(self, designs: list[AttentionConfig], hidden_size: int):
        super().__init__()
        self.partitioners = nn.ModuleList()
        self.slots: list[Slot] = []
        self.slot_of_layer: dict[int, int] = {}
        self.clock = PartitionClock()
        numbers: dict[str, int] = {}
        for layer, design in enumerate(designs):
            own = settings(design, "method")
            if not hasattr(own, "partition"):
                continue
            config = settings(own.partition)
            group = PARTITIONERS[own.partition.kind].group(config, layer)
            key = repr((own.context, own.partition.kind, config, group))
            if key not in numbers:
                numbers[key] = len(self.slots)
                self.slots.append(Slot(own.partition.kind, own.context, []))
                self.partitioners.append(build_partitioner(own.partition, hidden_size))
            self.slots[numbers[key]].layers.append(layer)
            self.slot_of_layer[layer] = numbers[key]

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave out what belongs to one forward."""
        return self.__dict__ | {"clock": PartitionClock()}

    def partitioner(self, number: int) -> Partitioner:
        found = self.partitioners[number]
        assert isinstance(found, Partitioner)
        return found

    def timed(self, device: torch.device) -> AbstractContextManager[None]:
        """Adds what runs inside to `clock`, in training only."""
        return self.clock.running(device) if self.training else nullcontext()


def partition_statistics(trace: Trace) -> dict[str, float]:
    """What the partitions of a forward look like: `partition/blocks` and so on, the mean over partitions.

    The trace must want `partition`.
    """
    rows = [describe(partition) for partition in trace.of("partition").values()]
    names = list(dict.fromkeys(name for row in rows for name in row))
    values = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items()}


def describe(partition: Partition) -> dict[str, float]:
    """Block counts and lengths of `partition`, and what its partitioner says of itself, under `partition/`."""
    if not partition.num_blocks:
        return {}
    lengths = partition.lengths.float()
    p10, p90 = lengths.quantile(lengths.new_tensor([0.1, 0.9])).tolist()
    own = {f"partition/{name}": float(value) for name, value in partition.statistics.items()}
    return {
        "partition/blocks": float(partition.num_blocks),
        "partition/mean_length": float(lengths.mean()),
        "partition/p10_length": p10,
        "partition/p90_length": p90,
        **own,
    }


class PartitionClock:
    """Seconds spent on making partitions (their backward pass, of learned ones, is not in it)."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """Time what is inside; on a GPU by events, so that nothing waits for it."""
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._events.append((start, end))
        else:
            started = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - started

    def lap(self) -> float:
        """Seconds since the last lap."""
        for start, end in self._events:
            end.synchronize()
            self._seconds += start.elapsed_time(end) / 1000
        seconds, self._seconds, self._events = self._seconds, 0.0, []
        return seconds
