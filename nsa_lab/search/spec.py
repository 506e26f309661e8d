"""A sweep file: which experiment, which objectives, which designs."""

import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from nsa_lab.config import ExperimentConfig, flatten, load_config, to_dict
from nsa_lab.errors import NsaLabError
from nsa_lab.files import unfit_for_a_folder
from nsa_lab.runner.python_file import execute, experiment_file, kind_of, place_of

DIRECTIONS = ("maximize", "minimize")
DEFAULT_TRIALS = 20
DENSE = {"dense": {"attention.method": "dense"}}
OWN = ("name", "output", "tracking")
"""Settings of the sweep itself; a trial that had its own would leave its study."""


@dataclass(frozen=True)
class Sweep:
    """What a sweep file defines. `base` is the experiment's YAML, `objectives` maps metrics to directions.

    `references` are designs by name, as overrides of the base, that are trained once beside the trials of a study.
    `start`, overrides too, is a run that is trained first, and from whose weights every design starts.
    """

    path: Path
    base: Path
    objectives: dict[str, str]
    suggest: Callable[[Any], dict[str, Any]]
    constraints: Callable[[ExperimentConfig], dict[str, float]] | None
    sampler: str
    pruner: str | None
    trials: int
    references: dict[str, dict[str, Any]] = field(default_factory=dict)
    start: dict[str, Any] | None = None


def load_sweep(path: str | Path) -> Sweep:
    """Read a sweep file. Raises NsaLabError that names the file and what it lacks."""
    file = Path(path)
    module = execute(file, "sweep")
    for name in ("BASE", "OBJECTIVES", "suggest"):
        if not hasattr(module, name):
            raise NsaLabError(f"{file} defines no {name}; a sweep needs BASE, OBJECTIVES and suggest(trial)")
    return Sweep(
        path=file,
        base=experiment_file(file, _typed(file, module, "BASE", str, "")),
        objectives=_objectives(file, module.OBJECTIVES),
        suggest=_function(file, module, "suggest"),
        constraints=_function(file, module, "constraints") if hasattr(module, "constraints") else None,
        sampler=_typed(file, module, "SAMPLER", str, "tpe"),
        pruner=_typed(file, module, "PRUNER", (str, type(None)), None),
        trials=_typed(file, module, "TRIALS", int, DEFAULT_TRIALS),
        references=_references(file, module),
        start=_start(file, module),
    )


def base_values(sweep: Sweep, overrides: Iterable[str]) -> dict[str, Any]:
    """The sweep's base experiment with the command line's overrides, as dotted keys. Raises ConfigError."""
    return flatten(to_dict(load_config(sweep.base, list(overrides))))


def suggested(sweep: Sweep, trial: Any) -> dict[str, Any]:
    """The overrides that `suggest` chooses for a trial. Raises NsaLabError when the function itself fails."""
    try:
        values = sweep.suggest(trial)
    except Exception as error:
        if "dynamic value space" in str(error):
            raise space_changed(str(error)) from error
        raise NsaLabError(f"{place_of(sweep.path, error)}: suggest failed: {kind_of(error)}; correct it") from error
    if not isinstance(values, dict):
        raise NsaLabError(f"{sweep.path}: suggest returned {values!r}; return a dict of dotted config keys")
    return _plain(sweep.path, "suggest", values)


def check_keys(sweep: Sweep, values: Mapping[str, Any], base: Mapping[str, Any], overrides: Iterable[str]) -> None:
    """Raise NsaLabError when `suggest` sets a key that no config has, or one that the command line fixes."""
    fixed = {text.partition("=")[0] for text in overrides}
    for key in values:
        if key.partition(".")[0] in OWN:
            raise NsaLabError(f"{sweep.path}: suggest sets {key}, which all trials of a study share; set it in BASE")
        if key in fixed:
            raise NsaLabError(f"{key} is searched by {sweep.path} and cannot be set on the command line; drop one")
        if key not in base and not key.startswith("attention.layers."):
            near = difflib.get_close_matches(key, base, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see `nsa-lab show`"
            raise NsaLabError(f"{sweep.path}: suggest sets {key!r}, which no config has; {hint}")


def constraint_values(sweep: Sweep, config: ExperimentConfig) -> dict[str, float]:
    """The sweep's own constraints on a design; above 0 is infeasible. Raises NsaLabError when they fail."""
    if sweep.constraints is None:
        return {}
    try:
        return {str(name): float(value) for name, value in sweep.constraints(config).items()}
    except Exception as error:
        place = place_of(sweep.path, error)
        raise NsaLabError(f"{place}: constraints failed: {kind_of(error)}; correct it") from error


def design(base: Mapping[str, Any], values: Mapping[str, Any], name: str) -> ExperimentConfig:
    """The config of one trial: the base, what `suggest` chose, a name. Raises ConfigError if infeasible."""
    return load_config(None, {**base, **values, "name": name})


def space_changed(reason: str) -> NsaLabError:
    """The error for a study whose search space no longer fits the sweep file."""
    return NsaLabError(f"the search space of this study changed ({reason}); start another with --study NEWNAME")


def _objectives(file: Path, objectives: Any) -> dict[str, str]:
    if not isinstance(objectives, dict) or not objectives:
        raise NsaLabError(f'{file}: OBJECTIVES is no dict like {{"val/accuracy": "maximize"}}')
    for name, direction in objectives.items():
        if not isinstance(name, str):
            raise NsaLabError(f"{file}: objective {name!r} is no name of a metric")
        if direction not in DIRECTIONS:
            raise NsaLabError(f"{file}: objective {name} has direction {direction!r}; use {' or '.join(DIRECTIONS)}")
    return dict(objectives)


def _references(file: Path, module: ModuleType) -> dict[str, dict[str, Any]]:
    references = _typed(file, module, "REFERENCES", dict, DENSE)
    plain = {}
    for name, values in references.items():
        if not isinstance(name, str) or unfit_for_a_folder(name) or not isinstance(values, dict):
            raise NsaLabError(f'{file}: REFERENCES is no dict like {{"dense": {{"attention.method": "dense"}}}}')
        plain[name] = _plain(file, f"reference {name}", values)
    return plain


def _start(file: Path, module: ModuleType) -> dict[str, Any] | None:
    values = getattr(module, "START", None)
    return None if values is None else _plain(file, "START", _typed(file, module, "START", dict, None))


def _typed(file: Path, module: ModuleType, name: str, kind: Any, default: Any) -> Any:
    value = getattr(module, name, default)
    if not isinstance(value, kind) or isinstance(value, bool):
        known = {str: "text", int: "a whole number", dict: "a dict"}.get(kind, "text or None")
        raise NsaLabError(f"{file}: {name} is {value!r}; write {known}")
    return value


def _plain(file: Path, what: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as YAML and JSON keep them. Raises NsaLabError that names one which they cannot."""
    for key, value in values.items():
        try:
            json.dumps({str(key): value}, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise NsaLabError(f"{file}: {what} gives {key!r} {value!r}; use plain numbers, text, lists") from error
        if not isinstance(key, str):
            raise NsaLabError(f"{file}: {what} has the key {key!r}; use dotted config keys")
    return dict(json.loads(json.dumps(values)))


def _function(file: Path, module: ModuleType, name: str) -> Any:
    function = getattr(module, name)
    if not callable(function):
        raise NsaLabError(f"{file}: {name} is not a function")
    return function
