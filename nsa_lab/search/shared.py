"""What sweeps on several machines share of a study: how many trials it still takes, who trains a reference, and
what one that died leaves to the others. Whoever calls these holds the study's lock.
"""

import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from nsa_lab.runner.recovery import is_alive, is_here
from nsa_lab.search.recovery import GRACE_S, original_number, was_begun
from nsa_lab.search.rows import REFERENCE, state_of

CLAIM = "claim:"
"""How the study attributes begin that say which sweep trains a reference, and when it was last heard."""


def taken(study: optuna.Study, before: int | None = None) -> int:
    """How many trials are trained, in training, or queued to be trained again; with a number lower than `before`.

    One that is retried is counted with its retry alone; reused and infeasible ones, which need no training, are not.
    """
    return sum((before is None or trial.number < before) and _is_taken(trial) for trial in _last_lives(study))


def remaining(study: optuna.Study, total: int | None) -> int:
    """How many trials may be handed out until `total` are taken; with None only those that are queued again."""
    queued = sum(trial.state == TrialState.WAITING and was_begun(trial) for trial in _last_lives(study))
    return queued if total is None else max(0, total - taken(study) + queued)


def elsewhere(study: optuna.Study, storage: Any, owner: Mapping[str, Any]) -> int:
    """How many trials other sweeps train, as far as it would be noticed if these died."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    owners = (trial.user_attrs.get("owner") for trial in running)
    heard = hasattr(storage, "record_heartbeat")
    return sum(who is not None and who != owner and (heard or is_here(who)) for who in owners)


def hand_back(study: optuna.Study, trial: FrozenTrial | optuna.Trial) -> None:
    """Let a trial that was just taken wait again, for whoever asks next."""
    study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)


def hand_back_unheard(study: optuna.Study, owner: Mapping[str, Any], flying: Collection[int]) -> None:
    """Hand back what `owner` was given in an answer that never came: its running trials that are not `flying`."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if trial.user_attrs.get("owner") == owner and trial.number not in flying:
            hand_back(study, trial)


def twin_of(study: optuna.Study, trial: optuna.Trial) -> FrozenTrial | None:
    """An earlier trial of the same design that was trained, pruned while it trained, or trains now.

    Of retries of the same trial, which two machines may both have queued, the first is it.
    """
    mine = trial.user_attrs
    for other in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)):
        attrs = other.user_attrs
        if other.number < trial.number and attrs.get("config_hash") == mine["config_hash"] and "reused" not in attrs:
            again = original_number(other) == original_number(trial)
            if not again or attrs.get("retry_from") == mine["retry_from"]:
                return other
    return None


def claim(study: optuna.Study, name: str, owner: Mapping[str, Any]) -> bool:
    """Take the reference `name` for `owner`; False where it is trained, or another live sweep has it."""
    if is_claimed(study, name, owner) or f"{REFERENCE}{name}" in study.user_attrs:
        return False
    renew(study, name, owner)
    return True


def renew(study: optuna.Study, name: str, owner: Mapping[str, Any]) -> None:
    """Tell other machines that the reference `name` is still in training."""
    study.set_user_attr(f"{CLAIM}{name}", {"owner": dict(owner), "heard": time.time()})


def is_claimed(study: optuna.Study, name: str, owner: Mapping[str, Any]) -> bool:
    """Whether another live sweep trains the reference `name`."""
    found = study.user_attrs.get(f"{CLAIM}{name}")
    if found is None or found["owner"] == owner:
        return False
    who = found["owner"]
    return is_alive(who) if is_here(who) else time.time() - found["heard"] < GRACE_S


def _last_lives(study: optuna.Study) -> Iterator[FrozenTrial]:
    """The trials that were not retried; where two machines have queued the same retry, the first."""
    trials = study.get_trials(deepcopy=False)
    retried = {trial.user_attrs.get("retry_from") for trial in trials}
    seen = set()
    for trial in trials:
        of = trial.user_attrs.get("retry_from")
        if trial.number not in retried and of not in seen:
            yield trial
        if of is not None:
            seen.add(of)


def _is_taken(trial: FrozenTrial) -> bool:
    state = state_of(trial)
    return was_begun(trial) if state == "waiting" else state not in ("reused", "infeasible")
