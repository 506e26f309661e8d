"""Question: do blocks that follow the content answer better than blocks that do not, at the same token budget?

Every partitioner and control on two tasks whose scenes last from one to thirty frames, with the same seeds, steps and
tokens read per query. `random_like` has the lengths of `scene` at random places, `shifted` is `uniform` out of phase,
`foreign` cuts where another clip changes. `dense` reads everything; `blind` is `uniform` on grey frames: what the
questions give away.

Command:  nsa-lab compare experiments/partition/compare.py --workers 16 training.accelerator=gpu
          nsa-lab compare experiments/partition/compare.py --seeds 5 --workers 2 training.accelerator=cpu
          nsa-lab report experiments/partition/compare.py experiments/results/partition/{,cpu/}runs.csv --out RESULTS.md
Cost:     with all 10 seeds 220 trainings of 200 steps: 66 s each on a quiet core, 75 to 85 s with 13 to 16 workers for
          each H200 or with 14 on 16 cores, so about 20 minutes there; with --seeds 5 half, on two cores an hour.
          Five seeds cannot bring the sign-flip test below 1/16; after Holm over ten designs it needs nine or more to
          fall below 0.05.
Expected: as in RESULTS.md; `uniform` at 88 +- 10% on recall and 92 +- 2% on duration. `dense` and `blind` came later
          and were not trained yet; blind should stay at chance.
"""

KINDS = ("uniform", "frame", "scene", "tile", "router", "cluster", "random_like", "shifted", "foreign")

EXPERIMENTS = ("experiments/partition/recall.yaml", "experiments/partition/duration.yaml")
VARIANTS = {
    **{kind: {"attention.partition.kind": kind} for kind in KINDS},
    "dense": {"attention.method": "dense"},
    "blind": {"data.blind": True},
}
REFERENCES = ("uniform", "frame", "random_like", "dense", "blind")
METRICS = {"val/accuracy": "maximize", "val/loss": "minimize"}
SEEDS = range(10)
