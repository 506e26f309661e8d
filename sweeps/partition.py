"""Question: do blocks that follow the content answer better than blocks that do not, at the same token budget?

As a comparison: every partitioner and control on two tasks whose scenes last from one to thirty frames, with the same
seeds, steps and tokens read per query. `random_like` has the lengths of `scene` at random places, `shifted` is
`uniform` out of phase, `foreign` cuts where another clip changes. As a sweep: block size and budget for each of them.

Command:  nsa-lab compare sweeps/partition.py --workers 16
          nsa-lab sweep sweeps/partition.py --trials 60 --workers 2
Cost:     compared with all 10 seeds 180 trainings of 200 steps: 66 s each on a quiet core, 82 to 86 s with 14 workers
          on 16 cores, so about 18 minutes there (--seeds 5: 9). Five seeds cannot bring the sign-flip test below 1/16;
          after Holm over eight designs it needs nine or more to fall below 0.05.
Expected: not measured yet. `uniform` was at 84% and 96% on recall (seeds 102 and 101) when the tasks were set.
"""

from typing import Any

BASE = "experiments/partition/recall.yaml"
OBJECTIVES = {"val/accuracy": "maximize", "budget/keys_per_query": "minimize"}
SAMPLER = "tpe"
TRIALS = 60

KIND = "attention.partition.kind"
KINDS = ("uniform", "frame", "scene", "tile", "router", "cluster", "random_like", "shifted", "foreign")

EXPERIMENTS = (BASE, "experiments/partition/duration.yaml")
VARIANTS = {kind: {KIND: kind} for kind in KINDS}
REFERENCES = ("uniform", "frame", "random_like")
METRICS = {"val/accuracy": "maximize", "val/loss": "minimize"}
SEEDS = range(10)


def suggest(trial: Any) -> dict[str, Any]:
    """Block sizes around the base experiment's; a budget holds the query's own block and at least one more."""
    size = trial.suggest_categorical("block_size", [4, 6, 8, 10])
    return {
        KIND: trial.suggest_categorical("kind", list(KINDS)),
        "attention.partition.block_size": size,
        "attention.branches.selection.token_budget": size * trial.suggest_categorical("blocks_read", [3, 4, 5]),
    }
