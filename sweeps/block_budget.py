"""Question: how should a reading budget be split between blocks and window, and which branches earn their keep?

The paper fixes blocks of 64, 32 selected, a window of 256 and all three branches. Here block size, block
count, window, the branches themselves and whether neighbouring queries share one choice are searched at the length
of the base experiment's clips.

Command:  nsa-lab sweep sweeps/block_budget.py --trials 60 --workers 2
Cost:     60 runs of experiments/tasks/needle.yaml, minus the infeasible designs, which cost nothing:
          about 4 minutes each on two CPU cores, so 2 to 4 hours.
Price:    keys read are not milliseconds. At the 7B head layout, 32,768 tokens, one H200: blocks of 64 x 32 take 7.55 ms
          forward and 20.8 with the backward, 128 x 16 (as many keys) 5.7 and 24.1; a shared choice (query_tile 16 or
          64) saves next to nothing yet (kernels/README.md).
Expected: not measured yet. Text rows attend densely and can find the event themselves, so accuracy may hardly
          depend on the branches; then the front is the cheapest design that trains.
"""

from typing import Any

from nsa_lab.config import ExperimentConfig
from nsa_lab.config.rules import clip_tokens

BASE = "experiments/tasks/needle.yaml"
OBJECTIVES = {"val/accuracy": "maximize", "budget/keys_per_query": "minimize"}
SAMPLER = "tpe"
TRIALS = 60

BRANCHES = "attention.branches"
BRANCH_SETS = (
    "compression",
    "selection",
    "window",
    "compression+selection",
    "compression+window",
    "selection+window",
    "compression+selection+window",
)


def suggest(trial: Any) -> dict[str, Any]:
    """Sizes are powers of two. A size is only drawn where its branch is on, always under the same name."""
    enabled = trial.suggest_categorical("branches", BRANCH_SETS).split("+")
    design: dict[str, Any] = {
        f"{BRANCHES}.{name}.enabled": name in enabled for name in ("compression", "selection", "window")
    }
    design["attention.partition.kind"] = "uniform"
    if "compression" in enabled or "selection" in enabled:
        design["attention.partition.block_size"] = trial.suggest_categorical("block_size", [4, 8, 16, 32])
    if "selection" in enabled:
        count = design[f"{BRANCHES}.selection.block_count"] = trial.suggest_categorical("block_count", [1, 2, 4, 8])
        if count > 1:  # four queries can stand in two blocks
            design[f"{BRANCHES}.selection.query_tile"] = trial.suggest_categorical("query_tile", [1, 4])
    if "window" in enabled:
        design[f"{BRANCHES}.window.size"] = trial.suggest_categorical("window", [4, 8, 16, 32, 64])
    return design


def constraints(config: ExperimentConfig) -> dict[str, float]:
    """A design must read less than the shortest clip, or it is dense attention under another name."""
    branches = config.attention.branches
    selected = branches.selection.block_count * config.attention.partition.block_size
    read = selected * branches.selection.enabled + branches.window.size * branches.window.enabled
    shortest = min(clip_tokens(config).values())
    return {"reads_less_than_the_clip": float(read - shortest + 1)}
