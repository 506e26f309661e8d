"""Partitioners: how the tokens of a context are cut into blocks. A new one is one file and one line here."""

from dataclasses import dataclass

from nsa_lab.partition.base import (
    Context,
    Partition,
    Partitioner,
    check_partition,
    partition_from_block_id,
    partition_from_starts,
)
from nsa_lab.partition.cluster import Cluster
from nsa_lab.partition.context import full_context, sparse_context, text_context
from nsa_lab.partition.foreign import Foreign
from nsa_lab.partition.frame import Frame
from nsa_lab.partition.random_like import RandomLike
from nsa_lab.partition.router import Router
from nsa_lab.partition.scene import Scene
from nsa_lab.partition.shifted import Shifted
from nsa_lab.partition.tile import Tile
from nsa_lab.partition.uniform import Uniform
from nsa_lab.plugin import build, chosen, settings

PARTITIONERS: dict[str, type[Partitioner]] = {
    "uniform": Uniform,
    "frame": Frame,
    "scene": Scene,
    "tile": Tile,
    "router": Router,
    "cluster": Cluster,
    "random_like": RandomLike,
    "shifted": Shifted,
    "foreign": Foreign,
}


@chosen(kind=PARTITIONERS)
@dataclass
class PartitionConfig(Partitioner.Config):
    """How video tokens are cut into blocks, in tokens."""

    kind: str = "uniform"


def build_partitioner(config: PartitionConfig, hidden_size: int = 1) -> Partitioner:
    """The partitioner that `config` names."""
    partitioner: Partitioner = build(config, "kind", hidden_size)
    return partitioner


def longest_block(config: PartitionConfig) -> int:
    """How many tokens a block of the partitioner that `config` names may hold at most."""
    return PARTITIONERS[config.kind].longest(settings(config))


__all__ = [
    "PARTITIONERS",
    "Context",
    "Partition",
    "PartitionConfig",
    "Partitioner",
    "build_partitioner",
    "check_partition",
    "full_context",
    "longest_block",
    "partition_from_block_id",
    "partition_from_starts",
    "sparse_context",
    "text_context",
]
