"""A design trained with several seeds: what it measured, as one result."""

import math
from collections.abc import Iterable, Sequence
from statistics import fmean

from nsa_lab.runner.job import End


def merged(ends: Sequence[End]) -> End:
    """The means of what every end measured, and the sum of their seconds. One end stays as it is."""
    if len(ends) == 1:
        return ends[0]
    common = set.intersection(*(set(end.metrics) for end in ends))
    means = {name: fmean(end.metrics[name] for end in ends) for name in sorted(common)}
    return End(sum(end.seconds for end in ends), means, ends[0].tracking_id)


def halves(ends: Sequence[End], names: Iterable[str]) -> dict[str, float]:
    """Half the width of the 95% interval of each metric over the seeds; empty where they are too few for one."""
    if len(ends) == 1:
        return {}
    from nsa_lab.comparison.statistics import interval  # imports scipy, which few sweeps need

    found = {name: interval([end.metrics[name] for end in ends]).half for name in names}
    return {name: half for name, half in found.items() if math.isfinite(half)}
