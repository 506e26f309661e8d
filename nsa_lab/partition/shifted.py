"""A control: blocks of one length that begin out of step with whatever the video does."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from nsa_lab.errors import Problem
from nsa_lab.partition.base import Context, Partition, Partitioner, partition_from_starts
from nsa_lab.partition.segments import place_in_run


class Shifted(Partitioner):
    """`uniform` with every boundary `phase` tokens earlier (half a block by default)."""

    @dataclass
    class Config(Partitioner.Config):
        """`phase` shortens the first block, in tokens; null: by half."""

        phase: int | None = None

    scales = {**Partitioner.scales, "phase": "frame"}
    control = True
    causality = "token"
    prefix_consistent = True

    @classmethod
    def problems(cls, config: Config, design: object) -> Iterator[Problem]:
        yield from super().problems(config, design)
        size, phase = config.block_size, config.phase
        if size == 1:
            yield Problem("block_size", "a block of 1 token cannot be shifted; use 2 or more, or kind=uniform")
        elif size > 1 and phase is not None and not 1 <= phase < size:
            yield Problem("phase", f"{phase} is outside 1 to {size - 1} (block_size - 1); null takes half a block")

    def forward(self, context: Context, features: Tensor | None = None, layer: int = 0) -> Partition:
        place, size = place_in_run(context.segment), self.config.block_size
        phase = size // 2 if self.config.phase is None else self.config.phase
        starts = (place == 0) | ((place + phase) % size == 0)
        return partition_from_starts(starts, context.cu_seqlens, self.causality)
