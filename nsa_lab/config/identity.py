"""Which settings make a run what it is. The others say where it is kept, how it is watched and on what it runs."""

import functools
from typing import Any

from nsa_lab.config.schema import ExperimentConfig
from nsa_lab.config.tree import flatten, read_settings, to_dict
from nsa_lab.files import digest

INCIDENTAL = (
    "name",
    "tracking",
    "output",
    "data.cache_dir",
    "data.workers",
    "data.memory_cache_mib",
    "training.resume",
    "training.recompute",
    "training.activation_offload",
    "training.memory_history",
    "training.threads",
    "training.devices",
    "training.context_parallel",
    "training.log_every",
)

ADDED_AS: dict[str, Any] = {"data.positions": "transformers"}
"""Settings whose default was meant to change, by dotted key, with the value that they were added with.

What was trained or saved before there was the setting had this value, and keeps its hash.
"""


def is_incidental(key: str) -> bool:
    """Whether the setting at the dotted `key` cannot change a result beyond float rounding.

    Of these, threads, devices and context_parallel may change the order of sums, and so the last bits of a result;
    workers, caches, logging, resuming and names change nothing.
    """
    return f"{key}.".startswith(tuple(f"{setting}." for setting in INCIDENTAL))


def identity(config: ExperimentConfig) -> dict[str, Any]:
    """What makes a run what it is: the settings that are read, not incidental, and other than they were added with.

    So a knob that comes later, switched off by default, changes no run's identity; and where a default becomes another,
    the runs of the new one are others than those of the old one.
    """
    known = as_added()
    return {
        key: value
        for key, value in read_settings(config).items()
        if not is_incidental(key) and (key not in known or value != known[key])
    }


def config_hash(config: ExperimentConfig) -> str:
    """Twelve hex digits over `identity`."""
    return digest(identity(config))


@functools.cache
def defaults() -> dict[str, Any]:
    """Every setting's default by dotted key."""
    return flatten(to_dict(ExperimentConfig()))


def as_added() -> dict[str, Any]:
    """By dotted key what every setting was before it could be set: its default, unless that became another."""
    return defaults() | ADDED_AS
