"""Partitioners: how the tokens of a context are cut into blocks. A new one is one file and one line here."""

from nsa_lab.config.schema import PartitionConfig
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


def build_partitioner(config: PartitionConfig, hidden_size: int = 1) -> Partitioner:
    """The partitioner that `config` names."""
    return PARTITIONERS[config.kind](config, hidden_size)


__all__ = [
    "PARTITIONERS",
    "Context",
    "Partition",
    "PartitionConfig",
    "Partitioner",
    "build_partitioner",
    "check_partition",
    "full_context",
    "partition_from_block_id",
    "partition_from_starts",
    "sparse_context",
    "text_context",
]
