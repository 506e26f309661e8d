"""Question: which way to cut a video into blocks, with which block size, answers best for the tokens it reads?

The same partitioners and controls are compared at one budget, with seeds and tests, in
experiments/partition/compare.py; here block size and budget are searched for each of them.

Command:  nsa-lab sweep sweeps/partition.py --trials 60 --workers 2
Cost:     60 runs of experiments/partition/recall.yaml: about 66 s each on a quiet core, so half an hour on two.
Expected: not measured yet. One seed ranks nothing on `recall`: `uniform` is at 85 +- 14% there (RESULTS.md).
"""

from typing import Any

BASE = "experiments/partition/recall.yaml"
OBJECTIVES = {"val/accuracy": "maximize", "budget/keys_per_query": "minimize"}
SAMPLER = "tpe"
TRIALS = 60

KINDS = ("uniform", "frame", "scene", "tile", "router", "cluster", "random_like", "shifted", "foreign")


def suggest(trial: Any) -> dict[str, Any]:
    """Block sizes around the base experiment's; a budget holds the query's own block and at least one more."""
    size = trial.suggest_categorical("block_size", [4, 6, 8, 10])
    return {
        "attention.partition.kind": trial.suggest_categorical("kind", list(KINDS)),
        "attention.partition.block_size": size,
        "attention.branches.selection.token_budget": size * trial.suggest_categorical("blocks_read", [3, 4, 5]),
    }
