"""Rules across the fields of a partition."""

from collections.abc import Iterator

from nsa_lab.config.schema import AttentionConfig, PartitionConfig
from nsa_lab.config.values import nearest
from nsa_lab.errors import Problem

TILE_SHAPES = ("time", "row", "cube")
AVERAGED = ("scene", "router", "random_like", "foreign")
"""The kinds that have block_size as their mean and max_size as their cap; blocks of the others end at block_size."""


def partition_rules(attention: AttentionConfig, path: str) -> Iterator[Problem]:
    """Every broken rule of a layer's partition; the settings of kinds that are not chosen are not looked at."""
    partition = attention.partition
    if partition.block_size < 1:
        yield Problem(f"{path}.block_size", f"{partition.block_size} is not positive")
        return
    if attention.mode == "dense":
        return
    kind = str(partition.kind)
    if kind in AVERAGED:
        yield from _size_rules(attention, path)
    if kind == "shifted":
        yield from _phase_rules(attention, path)
    if kind == "random_like" and partition.seed < 0:
        yield Problem(f"{path}.seed", f"{partition.seed} is negative; use 0 or more")
    if kind == "tile":
        yield from _tile_rules(attention, path)
    if kind == "router":
        yield from _router_rules(attention, path)
    if kind == "cluster":
        blocks = partition.cluster.blocks
        if blocks < 2 or blocks & (blocks - 1):
            yield Problem(f"{path}.cluster.blocks", f"{blocks} is not a power of two from 2 on; a stretch is halved")


def longest_block(partition: PartitionConfig) -> int:
    """How many tokens a block may hold at most."""
    if partition.kind not in AVERAGED:
        return partition.block_size
    return 2 * partition.block_size if partition.max_size is None else partition.max_size


def _size_rules(attention: AttentionConfig, path: str) -> Iterator[Problem]:
    partition = attention.partition
    if partition.max_size is not None and partition.max_size < partition.block_size:
        yield Problem(
            f"{path}.max_size",
            f"{partition.max_size} is less than block_size={partition.block_size}, the mean length to aim for",
        )
    if not 1 <= partition.min_size <= partition.block_size:
        yield Problem(
            f"{path}.min_size",
            f"{partition.min_size} is outside 1 to the mean length, block_size={partition.block_size}",
        )


def _phase_rules(attention: AttentionConfig, path: str) -> Iterator[Problem]:
    size, phase = attention.partition.block_size, attention.partition.phase
    if size < 2:
        yield Problem(f"{path}.block_size", "a block of 1 token cannot be shifted; use 2 or more, or kind=uniform")
    elif phase is not None and not 1 <= phase < size:
        yield Problem(f"{path}.phase", f"{phase} is outside 1 to {size - 1} (block_size - 1); null takes half a block")


def _tile_rules(attention: AttentionConfig, path: str) -> Iterator[Problem]:
    tile = attention.partition.tile
    words = tile.cycle.split()
    if not words:
        yield Problem(f"{path}.tile.cycle", f"names no shape; write some of {', '.join(TILE_SHAPES)}")
    for word in words:
        if word not in TILE_SHAPES:
            known = f"{nearest(word, list(TILE_SHAPES))}known: {', '.join(TILE_SHAPES)}"
            yield Problem(f"{path}.tile.cycle", f"unknown shape {word!r}; {known}")
    if tile.max_frames < 1:
        yield Problem(f"{path}.tile.max_frames", f"{tile.max_frames} is not positive")


def _router_rules(attention: AttentionConfig, path: str) -> Iterator[Problem]:
    router = attention.partition.router
    if router.loss_weight < 0:
        yield Problem(f"{path}.router.loss_weight", f"{router.loss_weight} is negative; use 0 or more")
    if router.group_size is not None and router.group_size < 1:
        yield Problem(f"{path}.router.group_size", f"{router.group_size} is not positive; null shares one router")
    if not attention.branches.compression.enabled:
        yield Problem(
            f"{path}.kind",
            "'router' learns only through the compression branch, which is off; enable it or use another kind",
        )
