"""How fast each kind of work goes on a GPU: the rows of rates.csv, each with where it is from.

`how` is measured, derived (from a measurement of something larger) or estimate. Rates of attention kernels depend on
the length of the sample and on the block size.
"""

import csv
import importlib.resources
import math
from dataclasses import dataclass, replace
from functools import cache

GPUS = {"h100": ("NVIDIA H100 80GB", 78.0), "h200": ("NVIDIA H200", 139.0)}
"""Name of a GPU, and its memory in GiB that a process can have."""


@dataclass(frozen=True)
class Rate:
    """`value` in TFLOP/s or GB/s, and how it is known."""

    value: float
    unit: str
    how: str
    source: str


@dataclass(frozen=True)
class Row:
    """One line of rates.csv; block_size and tokens are 0 where the rate depends on neither."""

    gpu: str
    kind: str
    direction: str
    block_size: int
    tokens: int
    rate: Rate


@cache
def rows() -> tuple[Row, ...]:
    """Every rate there is."""
    text = importlib.resources.files("nsa_lab.scale").joinpath("rates.csv").read_text()
    return tuple(
        Row(
            line["gpu"],
            line["kind"],
            line["direction"],
            int(line["block_size"] or 0),
            int(line["tokens"] or 0),
            Rate(float(line["rate"]), line["unit"], line["how"], line["source"]),
        )
        for line in csv.DictReader(text.splitlines())
    )


def rate(gpu: str, kind: str, direction: str = "", tokens: int = 0, block_size: int = 0) -> Rate:
    """The rate of `kind` on `gpu`: of the nearest block size, an estimate where that is another, between the lengths
    around `tokens` (logarithmically).

    direction: forward, or both for forward and backward together; empty where a rate has none.
    """
    found = [row for row in rows() if (row.gpu, row.kind, row.direction) == (gpu, kind, direction)]
    assert found, (gpu, kind, direction)
    nearest = min({row.block_size for row in found}, key=lambda size: abs(math.log((size or 1) / (block_size or 1))))
    same = sorted((row for row in found if row.block_size == nearest), key=lambda row: row.tokens)
    if nearest and block_size and nearest != block_size:
        same = [
            replace(row, rate=replace(row.rate, how="estimate", source=f"that of blocks of {nearest}")) for row in same
        ]
    below = max((row for row in same if row.tokens <= tokens), key=lambda row: row.tokens, default=same[0])
    above = min((row for row in same if row.tokens >= tokens), key=lambda row: row.tokens, default=same[-1])
    if above.tokens <= below.tokens:
        return below.rate
    share = math.log(tokens / below.tokens) / math.log(above.tokens / below.tokens)
    value = below.rate.value + share * (above.rate.value - below.rate.value)
    weaker = max(below.rate, above.rate, key=lambda own: ("measured", "derived", "estimate").index(own.how))
    return Rate(value, weaker.unit, weaker.how, weaker.source)


def has_rate(gpu: str, kind: str) -> bool:
    """Whether any rate of `kind` is known."""
    return any((row.gpu, row.kind) == (gpu, kind) for row in rows())
