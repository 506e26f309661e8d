"""Partitioners: how the tokens of a context are cut into blocks. A new one is one file and one line here."""

from nsa_lab.partition.base import Context, Partition, Partitioner, check_partition, partition_from_block_id
from nsa_lab.partition.context import full_context, sparse_context, text_context
from nsa_lab.partition.frame import frame
from nsa_lab.partition.uniform import uniform

PARTITIONERS: dict[str, Partitioner] = {
    "uniform": uniform,
    "frame": frame,
}

__all__ = [
    "PARTITIONERS",
    "Context",
    "Partition",
    "Partitioner",
    "check_partition",
    "frame",
    "full_context",
    "partition_from_block_id",
    "sparse_context",
    "text_context",
    "uniform",
]
