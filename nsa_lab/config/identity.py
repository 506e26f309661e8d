"""Which settings make a run what it is. The others say where it is kept, how it is watched and on what it runs."""

import hashlib
import json

from nsa_lab.config.load import flatten, to_dict
from nsa_lab.config.schema import ExperimentConfig

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
    """Whether the setting at the dotted `key` cannot change a result beyond float rounding."""
    return f"{key}.".startswith(tuple(f"{setting}." for setting in INCIDENTAL))


def config_hash(config: ExperimentConfig) -> str:
    """Twelve hex digits over everything that can change a result.

    The INCIDENTAL settings are left out. Of these, threads may change the order of sums, and so the last bits of
    a result; workers, caches, logging, resuming and names change nothing.
    """
    content = {key: value for key, value in flatten(to_dict(config)).items() if not is_incidental(key)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
