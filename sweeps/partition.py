"""Question: do blocks that follow the content answer better than blocks that do not, at the same token budget?

As a comparison: every partitioner and control on two tasks whose scenes last from one to thirty frames, with the same
seeds, steps and tokens read per query. `random_like` has the lengths of `scene` at random places, `shifted` is
`uniform` out of phase, `foreign` cuts where another clip changes. As a sweep: block size and budget for each of them.

Found: no partition differs from `uniform` or `frame` beyond chance. On `duration` every design but `random_like` is
within 2.3 points of `uniform` (ends of the 95% intervals), so a larger gain is unlikely there; on `recall` seeds differ
so much (accuracies from 0.39 to 1.00: some have not left a plateau after 200 steps) that gains or losses of 10 points
would not show. What does show: lengths drawn at random are worse. On `duration` `random_like` has a higher loss than
every other design (`uniform`: by 0.041 +- 0.022). Blocks that follow the content (`scene`) do no better than the same
rule's boundaries of another clip (`foreign`; -1.3 +- 5.4 and -0.3 +- 1.5 points): nothing here says that following the
content helps.

Command:  nsa-lab compare sweeps/partition.py --workers 16 training.accelerator=gpu
          nsa-lab report sweeps/partition.py experiments/results/partition/runs.csv
          nsa-lab sweep sweeps/partition.py --trials 60 --workers 2
Cost:     compared with all 10 seeds 180 trainings of 200 steps: 66 s each on a quiet core, 75 to 85 s with 13 to 16
          workers for each H200 or with 14 on 16 cores, so about 16 minutes there (--seeds 5: 8). Five seeds cannot
          bring the sign-flip test below 1/16; after Holm over eight designs it needs nine or more to fall below 0.05.
Expected: as found; `uniform` at 85 +- 14% on recall and 92 +- 1% on duration.
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
