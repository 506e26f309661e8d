"""Search: a sweep file, one Optuna study, worker processes that train its trials, and the Pareto set."""

from nsa_lab.search.sweep import SweepResult, show, sweep

__all__ = ["SweepResult", "show", "sweep"]
