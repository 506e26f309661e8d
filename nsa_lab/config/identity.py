"""Which settings make a run what it is. The others say where it is kept, how it is watched and on what it runs."""

import functools
import hashlib
import json
from typing import Any

from nsa_lab.config.schema import ExperimentConfig
from nsa_lab.config.tree import flatten, read_settings, to_dict

INCIDENTAL = (
    "name",
    "tracking",
    "output",
    "data.cache_dir",
    "data.workers",
    "data.memory_cache_mib",
    "training.resume",
    "training.threads",
    "training.log_every",
)


def is_incidental(key: str) -> bool:
    """Whether the setting at the dotted `key` cannot change a result beyond float rounding.

    Of these, threads may change the order of sums, and so the last bits of a result; workers, caches, logging, resuming
    and names change nothing.
    """
    return f"{key}.".startswith(tuple(f"{setting}." for setting in INCIDENTAL))


def identity(config: ExperimentConfig) -> dict[str, Any]:
    """What makes a run what it is: the settings that are read, not incidental, and other than their defaults.

    So a knob that comes later, switched off by default, changes no run's identity.
    """
    known = defaults()
    return {
        key: value
        for key, value in read_settings(config).items()
        if not is_incidental(key) and (key not in known or value != known[key])
    }


def config_hash(config: ExperimentConfig) -> str:
    """Twelve hex digits over `identity`."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:12]


@functools.cache
def defaults() -> dict[str, Any]:
    """Every setting's default by dotted key."""
    return flatten(to_dict(ExperimentConfig()))
