"""Question: do blocks that follow the content answer better than blocks that do not, at the same token budget?

As a comparison: every partitioner and control on two tasks whose scenes last from one to thirty frames, with the same
seeds, steps and tokens read per query. `random_like` has the lengths of `scene` at random places, `shifted` is
`uniform` out of phase, `foreign` cuts where another clip changes. As a sweep: block size and budget for each of them.

Found in experiments/results/partition/runs.csv: on H200s (9 or 10 seeds; no `random_like`, see LOG.md) no partition
differs from `uniform` or `frame` beyond chance. On `duration` all lie within 2.5 points of both (ends of the 95%
intervals), so that a larger gain is unlikely there. On `recall` the intervals reach 6 to 18 points: accuracies vary
from 0.45 to 1.00, as some seeds have not left a plateau after 200 steps. Blocks that follow the content (`scene`) do no
better than the same rule's boundaries of another clip (`foreign`; -1.3 +- 5.3 and -0.3 +- 1.5 points): nothing here
says that following the content helps. Budgets are equal by rule: 23 to 27 tokens are read per query (counted before
training here, after it below), and 3 (`router`) to 10 (`frame`, whose blocks are single frames of 4) pooled keys.

Found in experiments/results/partition/cpu/runs.csv: the same on CPU cores with a `random_like` that draws an order for
every clip (5 seeds, 8 or 9 of `uniform`, `frame` and `random_like`). Lengths at random places seem to cost a little on
`duration`: a loss 0.026 +- 0.014 above that of `uniform` (p 0.030 by t-test, 0.125 by sign flips), 2.3 +- 1.5 points of
accuracy (0.080, 0.250). On `recall` `foreign` has a higher loss than `frame` (0.127 +- 0.047; p 0.014, 0.438). No other
difference from `uniform`, `frame` or `random_like` stands out. `scene` is ahead of `foreign` on `recall` (4.3 +- 3.7
points, p 0.033 unadjusted), which the ten seeds above do not bear out.

Command:  nsa-lab compare sweeps/partition.py --workers 16 training.accelerator=gpu
          nsa-lab compare sweeps/partition.py --seeds 5 --workers 2 training.accelerator=cpu
          nsa-lab report sweeps/partition.py experiments/results/partition/{,cpu/}runs.csv --out RESULTS.md
          nsa-lab sweep sweeps/partition.py --trials 60 --workers 2
Cost:     compared with all 10 seeds 180 trainings of 200 steps: 66 s each on a quiet core, 75 to 85 s with 13 to 16
          workers for each H200 or with 14 on 16 cores, so about 16 minutes there; with --seeds 5 half, on two cores
          50 minutes. Five seeds cannot bring the sign-flip test below 1/16; after Holm over eight designs it needs
          nine or more to fall below 0.05.
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
