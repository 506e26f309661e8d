"""Samplers and pruners by name."""

import difflib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import optuna

from nsa_lab.errors import NsaLabError

SAMPLERS: dict[str, Callable[[int], Any]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed),
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
    "nsga3": lambda seed: optuna.samplers.NSGAIIISampler(seed=seed),
    "qmc": lambda seed: optuna.samplers.QMCSampler(seed=0, scramble=True),
    "brute": lambda seed: optuna.samplers.BruteForceSampler(seed=seed),
}
PRUNERS: dict[str, Callable[[], Any]] = {
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=5),
    "percentile": lambda: optuna.pruners.PercentilePruner(25.0, n_startup_trials=5),
    "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(),
    "hyperband": lambda: optuna.pruners.HyperbandPruner(),
}


def build_sampler(name: str, seed: int) -> Any:
    """A sampler by name. `qmc` ignores the seed: its workers share one sequence, kept in the study."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return _named(SAMPLERS, name, "SAMPLER")(seed)


def build_pruner(name: str | None) -> Any:
    """A pruner by name; None never prunes."""
    return optuna.pruners.NopPruner() if name is None else _named(PRUNERS, name, "PRUNER")()


def _named(table: Mapping[str, Any], name: Any, what: str) -> Any:
    if name not in table:
        near = difflib.get_close_matches(str(name), table, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise NsaLabError(f"{what} {name!r} is unknown; {hint}known: {', '.join(table)}")
    return table[name]
