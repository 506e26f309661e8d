"""The processes that train one model together: what this one's part is, and sums over all of them.

Every function here does nothing but return its argument where one process trains alone.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import distributed as dist

from nsa_lab.config.schema import TrainingConfig
from nsa_lab.errors import NsaLabError

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun, and our own launcher, tell a process by environment variables."""


@dataclass(frozen=True)
class Ranks:
    """This process's `rank` among `world` on all machines, `local_world` of them on this one.

    `context` neighbouring ones share each of their samples.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    context: int = 1

    @classmethod
    def of(cls, training: TrainingConfig) -> "Ranks":
        """As a launcher says; where there was none, the first of `training.devices` processes of this machine."""
        if not launched():
            return cls(0, training.devices, 0, training.devices, training.context_parallel)
        rank, world, local_rank, local_world = (int(os.environ[name]) for name in LAUNCHED[:4])
        return cls(rank, world, local_rank, local_world, training.context_parallel)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    @property
    def place(self) -> int:
        """This process's number among those that share its samples."""
        return self.rank % self.context

    @property
    def data(self) -> "Ranks":
        """The rank of its samples: processes that share theirs are one."""
        return Ranks(self.rank // self.context, self.world // self.context)

    def mean(self, values: Mapping[str, float], weight: float, of: int | None = None) -> dict[str, float]:
        """Means by name over the processes that share samples with this one, or over group `of`; all must ask.

        `weight` is this process's, of the rows that its values are means of.
        """
        begin = (self.data.rank if of is None else of) * self.context
        pairs = gathered((dict(values), weight))[begin : begin + self.context]
        whole = sum(weight for _, weight in pairs) or 1.0
        return {
            name: sum(found[name] * (weight / whole) for found, weight in pairs if name in found)
            for name in dict.fromkeys(name for found, _ in pairs for name in found)
        }

    def share(self, training: TrainingConfig) -> TrainingConfig:
        """`training` with the batch_size and accumulate of this process; a step's samples stay those of one process.

        Raises NsaLabError where the samples of a step, or its batches of so many tokens, do not divide over the
        processes, or the processes over samples.
        """
        if self.world % self.context:
            raise NsaLabError(
                f"training.context_parallel={self.context} processes share a sample, but there are {self.world} in "
                f"all; set training.devices to a multiple of {self.context}"
            )
        world, sharers = self.data.world, "processes" if self.context == 1 else "groups of processes"
        if world == 1:
            return training
        if training.tokens_per_batch is not None:
            own, rest = divmod(training.accumulate, world)
            if rest:
                raise NsaLabError(
                    f"the batches of a step, training.accumulate={training.accumulate} of up to "
                    f"{training.tokens_per_batch} tokens, do not divide over {world} {sharers}; "
                    f"set training.accumulate to a multiple of {world}"
                )
            return replace(training, accumulate=own)
        step = training.batch_size * training.accumulate
        own, rest = divmod(step, world)
        size = min(training.batch_size, own)
        if rest or own % size:
            raise NsaLabError(
                f"the samples of a step, {step} (training.batch_size={training.batch_size} times "
                f"training.accumulate={training.accumulate}), do not divide over {world} {sharers} into equal "
                f"batches; set training.accumulate to a multiple of {world}"
            )
        return replace(training, batch_size=size, accumulate=own // size)


ALONE = Ranks()


def launched() -> bool:
    """Whether torchrun or the like has started this process."""
    return all(name in os.environ for name in LAUNCHED)


def together() -> bool:
    """Whether several processes train here."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gathered(value: Any) -> list[Any]:
    """The plain `value` of every process by rank."""
    if not together():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def total(*numbers: float) -> list[float]:
    """Each number summed over the processes."""
    if not together():
        return list(numbers)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    added_up = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(added_up)
    return added_up.tolist()


def anyone(answer: bool) -> bool:
    """Whether the answer of any process is yes."""
    return bool(total(float(answer))[0]) if together() else answer


def added(parts: Iterable[Mapping[str, tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """Pairs of sums and counts by name, added up over `parts`."""
    found: dict[str, tuple[float, float]] = {}
    for part in parts:
        for name, (value, count) in part.items():
            before = found.get(name, (0, 0))
            found[name] = (before[0] + value, before[1] + count)
    return found


def sums(values: Mapping[str, float]) -> dict[str, float]:
    """Each value by name summed over the processes, of which some may lack it."""
    parts = ({name: (value, 1) for name, value in part.items()} for part in gathered(dict(values)))
    return {name: value for name, (value, _) in added(parts).items()}


def barrier() -> None:
    """Wait for every process."""
    if together():
        total(0.0)
