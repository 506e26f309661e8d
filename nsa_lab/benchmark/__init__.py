"""Public benchmarks through lmms-eval: settings of each, our model as a plug-in, scores beside the paper's."""

from nsa_lab.benchmark.run import Score, benchmark
from nsa_lab.benchmark.settings import Benchmark, read_benchmarks

__all__ = ["Benchmark", "Score", "benchmark", "read_benchmarks"]
