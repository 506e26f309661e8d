"""`nsa-lab bench`: what a training step, or one layer, costs by video length."""

from nsa_lab.bench.run import run_bench

__all__ = ["run_bench"]
