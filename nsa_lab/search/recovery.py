"""Trials whose process died: found, marked as failed, and queued again with the same parameters.

Every trial carries its `owner` (the sweep that handed it out) from the moment it exists, so a kill at any
point leaves enough to decide whose it was. On this host pids say which processes are gone. Of other hosts that
is known by Optuna's heartbeat, which a database keeps and a journal file does not.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from nsa_lab.runner.recovery import MAX_RETRIES, has_ended, identity, is_alive, is_here, last_checkpoint

HEARTBEAT_S = 60
GRACE_S = 600
ORPHAN_PATIENCE_S = 20


def next_trial(study: optuna.Study, owner: Mapping[str, Any]) -> optuna.Trial:
    """Take the oldest waiting trial, or a new one; it is `owner`'s, and beats, from its first moment on."""
    if not (waiting := _waiting(study)):
        study.enqueue_trial({}, user_attrs={"owner": dict(owner)})
        waiting = _waiting(study)
    for oldest in waiting[:1]:
        beat(study._storage, oldest)  # one that never beat would not be missed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a heartbeat is for Study.optimize alone
        trial = study.ask()
    beat(study._storage, trial)
    trial.set_user_attr("owner", dict(owner))
    return trial


def beat(storage: Any, trial: FrozenTrial | optuna.Trial) -> None:
    """Tell sweeps on other hosts that a trial is alive, where the storage can."""
    if hasattr(storage, "record_heartbeat"):
        storage.record_heartbeat(trial._trial_id)


def original_number(trial: FrozenTrial | optuna.Trial) -> int:
    """The number that a trial's directory bears: its own, or that of the trial it retries."""
    return int(trial.user_attrs.get("retry_of", trial.number))


def retry(
    study: optuna.Study, trial: FrozenTrial, reason: str, owner: Mapping[str, Any], *, counts: bool = True
) -> bool:
    """Queue a dead trial again and mark it as failed; False when it used up its retries.

    Queued first and marked second: killed in between, the next recovery finds the retry and only marks.
    """
    again = _queue(study, trial, owner, counts)
    said = reason if again else f"{reason}, after {MAX_RETRIES} retries"
    optuna.Trial(study, trial._trial_id).set_user_attr("reason", said)
    study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
    return again


def queue_stale(study: optuna.Study, trial: FrozenTrial) -> None:
    """What Optuna calls with a trial that it has just failed because its heartbeat stopped."""
    if "owner" in trial.user_attrs:
        _queue(study, trial, identity(), counts=True)


def reason_of(trial: FrozenTrial) -> str:
    """Why a trial ended as it did. One that Optuna failed could not be told why."""
    return str(trial.user_attrs.get("reason", "its host fell silent" if _fell_silent(trial) else ""))


def recover(study: optuna.Study, storage: Any, owner: Mapping[str, Any]) -> int:
    """Queue the trials of dead sweeps again; how many now wait for `owner` that some sweep had begun."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if is_orphan(trial):
            retry(study, trial, "its sweep was killed", owner)
        elif is_here(trial.user_attrs.get("owner")):
            beat(storage, trial)  # its pid says that it lives, though it may have slept
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.FAIL,)):
        if _fell_silent(trial):
            queue_stale(study, trial)  # who failed it may have died before it was queued
    begun = [trial for trial in _waiting(study) if was_begun(trial) and not _is_kept(trial, owner)]
    for trial in begun:
        optuna.Trial(study, trial._trial_id).set_user_attr("owner", dict(owner))
    return len(begun)


def queued_for(study: optuna.Study, owner: Mapping[str, Any]) -> int:
    """How many trials wait for `owner` that some sweep had begun."""
    return sum(was_begun(trial) and trial.user_attrs.get("owner") == owner for trial in _waiting(study))


def is_orphan(trial: FrozenTrial) -> bool:
    """Whether a running trial's processes were of this host and are gone.

    A trial without an owner was not handed out by a sweep and is never touched.
    """
    owner, worker = trial.user_attrs.get("owner"), trial.user_attrs.get("worker")
    if not is_here(owner) or is_alive(owner):
        return False
    # A worker is about to notice that its sweep is gone.
    return worker is None or has_ended(worker, ORPHAN_PATIENCE_S)


def _queue(study: optuna.Study, trial: FrozenTrial, owner: Mapping[str, Any], counts: bool) -> bool:
    """Queue a trial again unless that was done; False when it used up its retries, lives without a new checkpoint."""
    attrs = trial.user_attrs
    reached = last_checkpoint(attrs["directory"]) if "directory" in attrs else 0
    retries = int(attrs.get("retries", 0)) + int(counts and reached == attrs.get("reached", 0))
    if retries <= MAX_RETRIES and not _is_retried(study, trial):
        origin = {"retry_of": original_number(trial), "retry_from": trial.number, "retries": retries}
        origin |= {"reached": reached, "life": int(attrs.get("life", 0)) + 1}
        # What was fixed but not yet suggested when it died belongs to its design too.
        params = trial.system_attrs.get("fixed_params", {}) | trial.params
        study.enqueue_trial(params, user_attrs={"owner": dict(owner), **origin})
    return retries <= MAX_RETRIES


def _is_retried(study: optuna.Study, trial: FrozenTrial) -> bool:
    return any(t.user_attrs.get("retry_from") == trial.number for t in study.get_trials(deepcopy=False))


def was_begun(trial: FrozenTrial) -> bool:
    """Whether a waiting trial has a design already, most often because it is a retry."""
    return "retry_of" in trial.user_attrs or bool(trial.system_attrs.get("fixed_params"))


def _waiting(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.WAITING,))


def _fell_silent(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.FAIL and "owner" in trial.user_attrs and "reason" not in trial.user_attrs


def _is_kept(trial: FrozenTrial, owner: Mapping[str, Any]) -> bool:
    """Whether another live sweep will run this waiting trial."""
    other = trial.user_attrs.get("owner")
    return other is not None and other != owner and (not is_here(other) or is_alive(other))
