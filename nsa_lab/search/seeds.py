"""A design trained with several seeds: its jobs, and what they measured as one result."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from nsa_lab.config import ExperimentConfig, to_dict
from nsa_lab.runner.job import End, Job


def jobs_of(
    config: ExperimentConfig, name: str, directory: Path, tags: Mapping[str, str], seeds: int, **options: Any
) -> dict[int, Job]:
    """The jobs of a design by seed, with the `options` of Job: in `directory`, or with several in folders of it."""
    tree = to_dict(config)
    if seeds == 1:
        return {config.seed: Job(name, tree, str(directory), tags=tags, **options)}
    return {
        seed: Job(
            f"{name}-seed-{seed}",
            {**tree, "seed": seed},
            str(directory / f"seed-{seed}"),
            tags={**tags, "mlflow.runName": f"{tags['mlflow.runName']} seed {seed}"},
            **options,
        )
        for seed in range(config.seed, config.seed + seeds)
    }


def merged(ends: Sequence[End]) -> End:
    """The means of what every end measured, and the sum of their seconds if all are known. One end stays as it is."""
    if len(ends) == 1:
        return ends[0]
    common = set.intersection(*(set(end.metrics) for end in ends))
    means = {name: fmean(end.metrics[name] for end in ends) for name in sorted(common)}
    seconds = [end.seconds for end in ends if end.seconds is not None]
    return End(sum(seconds) if len(seconds) == len(ends) else None, means, ends[0].tracking_id)


def halves(ends: Sequence[End], names: Iterable[str]) -> dict[str, float]:
    """Half the width of the 95% interval of each metric over the seeds; empty where they are too few for one."""
    if len(ends) == 1:
        return {}
    from nsa_lab.comparison.statistics import interval  # imports scipy, which few sweeps need

    found = {name: interval([end.metrics[name] for end in ends]).half for name in names}
    return {name: half for name, half in found.items() if math.isfinite(half)}
