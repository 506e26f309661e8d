"""Question: how few keys may a video query read and still pass on what it saw?

A clip shows two scenes and a flash in one of them; which colour was there then? The text stands after a grey end and
sees only that end (`attention.text_window`), so the answer must travel through the video tokens, by the branches. A
dense model learns the task first; every design starts from its weights, as VideoNSA starts from Qwen2.5-VL.

Command:  nsa-lab sweep sweeps/demo.py --trials 8 --workers 2
Cost:     200 steps of the dense model, then 40 of dense again and of 8 designs: five to six minutes on two CPU cores.
Expected: dense near 100%; the window alone at chance (12.5%); the others in between, better with more keys.
          One seed: a few points between two designs say nothing.
"""

from typing import Any

BASE = "experiments/demo.yaml"
START = {"attention.method": "dense", "training.steps": 200, "training.val_every": 50, "training.warmup_steps": 30}
OBJECTIVES = {"val/accuracy": "maximize", "budget/keys_per_query": "minimize"}
SAMPLER = "tpe"
TRIALS = 8

BRANCH_SETS = ("compression+selection+window", "selection+window", "window")


def suggest(trial: Any) -> dict[str, Any]:
    enabled = trial.suggest_categorical("branches", BRANCH_SETS).split("+")
    design: dict[str, Any] = {
        f"attention.branches.{name}.enabled": name in enabled for name in ("compression", "selection", "window")
    }
    if "selection" in enabled:
        design["attention.partition.block_size"] = trial.suggest_categorical("block_size", [2, 4, 8])
        design["attention.branches.selection.block_count"] = trial.suggest_categorical("block_count", [1, 2, 4])
    design["attention.branches.window.size"] = trial.suggest_categorical("window", [4, 8, 16])
    return design
