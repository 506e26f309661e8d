"""Create a study, or resume one after checking that it still asks the same question."""

import warnings
from collections.abc import Mapping, Sequence, Set
from typing import Any

import optuna

from nsa_lab.config import as_added, is_incidental
from nsa_lab.errors import ConfigError, NsaLabError
from nsa_lab.redact import hide
from nsa_lab.search.rows import objectives_of
from nsa_lab.search.spec import (
    Sweep,
    check_keys,
    constraint_values,
    design,
    space_changed,
    suggested,
)

PROBES = 32


def open_study(
    sweep: Sweep, storage: Any, name: str, base: Mapping[str, Any], overrides: Sequence[str], seeds: int = 1
) -> optuna.Study:
    """The study `name` for a sweep, created where missing.

    The trials of a parent process draw nothing, so its sampler is a plain random one. Raises NsaLabError when
    the study has other objectives, another base experiment or another search space.
    """
    space, constants = _probe_space(sweep, base, overrides)
    asked = {
        "params": sorted(space),
        "constants": constants,
        "references": sweep.references,
        "start": sweep.start or {},
    }
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        directions=list(sweep.objectives.values()),
        sampler=optuna.samplers.RandomSampler(),
        load_if_exists=True,
    )
    if "base" not in study.user_attrs:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(sweep.objectives))
        study.set_user_attr("base", {k: hide(v) if isinstance(v, str) else v for k, v in base.items()})
        study.set_user_attr("sweep_file", str(sweep.path))
        study.set_user_attr("seeds", seeds)
    if "asked" not in study.user_attrs:  # it is new, or older than this check
        study.set_user_attr("asked", asked)
    study.set_user_attr("sampler", sweep.sampler)
    _check_objectives(study, sweep)
    _check_base(study, base, frozenset({"model.path"} if sweep.start else ()))
    _check_asked(study, asked)
    _check_space(study, space)
    if study.user_attrs.get("seeds", 1) != seeds:
        raise NsaLabError(
            f"study {name!r} trains each design with --seeds {study.user_attrs.get('seeds', 1)}, not {seeds}; "
            "use the same, or start another with --study NEWNAME"
        )
    return study


def _probe_space(
    sweep: Sweep, base: Mapping[str, Any], overrides: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run `suggest` on throw-away trials, so that faults show early.

    Returns the distributions, and the settings that never changed though parameters did.
    """
    scratch = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    space: dict[str, Any] = {}
    seen: dict[str, list[Any]] = {}
    for _ in range(PROBES):
        trial = scratch.ask()
        values = suggested(sweep, trial)
        for key, value in values.items():
            seen.setdefault(key, []).append(value)
        check_keys(sweep, values, base, overrides)
        try:
            constraint_values(sweep, design(base, values, "probe"))
        except ConfigError:
            continue  # an infeasible design; it is the trial's business
        finally:
            space |= trial.distributions
    return space, {key: found[0] for key, found in seen.items() if len(found) == PROBES and _all_equal(found)}


def _all_equal(found: Sequence[Any]) -> bool:
    return all(value == found[0] for value in found)


def _check_objectives(study: optuna.Study, sweep: Sweep) -> None:
    if objectives_of(study) != sweep.objectives:
        raise NsaLabError(
            f"study {study.study_name!r} has the objectives {objectives_of(study)}, the sweep file "
            f"{sweep.objectives}; start another with --study NEWNAME"
        )


def _check_base(study: optuna.Study, base: Mapping[str, Any], local: Set[str] = frozenset()) -> None:
    """Trials of two experiments cannot be compared. A setting that the study has never seen was as it was added.

    `local` settings are those that name a folder of this machine's own.
    """
    old = as_added() | study.user_attrs["base"]
    changed = [
        f"{key}={old.get(key)} then, {base.get(key)} now"
        for key in sorted({*old, *base})
        if old.get(key) != base.get(key) and key not in local and not is_incidental(key)
    ]
    if changed:
        raise NsaLabError(
            f"study {study.study_name!r} was run with another base experiment ({'; '.join(changed[:3])}); "
            "use the same settings, or start another with --study NEWNAME"
        )


def _check_asked(study: optuna.Study, asked: Mapping[str, Any]) -> None:
    """Trials of another question cannot be mixed in: a parameter renamed, a constant of `suggest` changed."""
    old = study.user_attrs["asked"]
    params = asked["params"]
    if old["params"] != params:
        gone, new = sorted(set(old["params"]) - {*params}), sorted({*params} - set(old["params"]))
        raise space_changed(f"parameters gone: {', '.join(gone) or 'none'}; new: {', '.join(new) or 'none'}")
    for what in ("constants", "references", "start"):
        then, now = old.get(what, {}), asked[what]
        for key in sorted({*then, *now}):
            if then.get(key) != now.get(key):
                raise space_changed(f"{what}: {key}={then.get(key)} then, {now.get(key)} now")


def _check_space(study: optuna.Study, space: Mapping[str, Any]) -> None:
    for trial in study.get_trials(deepcopy=False):
        for name in trial.distributions.keys() & space.keys():
            try:
                optuna.distributions.check_distribution_compatibility(trial.distributions[name], space[name])
            except ValueError as error:
                raise space_changed(f"{name}: {error}") from error
