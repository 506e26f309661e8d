"""Question: does a sweep run from end to end here, and do small budgets cost quality?

Command:  nsa-lab sweep sweeps/smoke.py --trials 6 --workers 2
Cost:     about 6 runs of experiments/smoke.yaml (seconds to a minute each on two CPU cores).
Expected: a Pareto set of a few designs from about 8 to 30 keys per query. Quality is the loss on held-out answers:
          after a hundred steps accuracies are still equal, and losses differ by luck as much as by merit.
"""

from typing import Any

BASE = "experiments/smoke.yaml"
OBJECTIVES = {"val/loss": "minimize", "budget/keys_per_query": "minimize"}
SAMPLER = "tpe"
TRIALS = 6


def suggest(trial: Any) -> dict[str, Any]:
    keys = {
        "attention.partition.block_size": [4, 8, 16],
        "attention.branches.selection.block_count": [1, 2, 4],
        "attention.branches.window.size": [4, 8, 16],
    }
    return {key: trial.suggest_categorical(key, choices) for key, choices in keys.items()}
