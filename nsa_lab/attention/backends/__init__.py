"""Which implementation runs the attention ops: chosen once, said aloud, never changed silently."""

import logging
from types import ModuleType

import torch

from nsa_lab.attention.backends import reference, torch_path
from nsa_lab.errors import NsaLabError

BACKENDS: dict[str, ModuleType] = {
    "torch": torch_path,
    "reference": reference,
}
"""In the order `auto` prefers. Each has `why_not(device) -> str | None` and the ops of `reference`."""

log = logging.getLogger(__name__)
_said: set[tuple[str, str]] = set()


def choose_backend(name: str, device: torch.device) -> str:
    """The backend that `name` asks for on `device`; `auto` is the first that can run there, and says so once.

    Raises NsaLabError where the named one cannot run, with its reason.
    """
    if name != "auto":
        reason = BACKENDS[name].why_not(device)
        if reason is not None:
            raise NsaLabError(f"attention.backend={name} cannot run on {device}: {reason}; use attention.backend=auto")
        return name
    reasons = {candidate: module.why_not(device) for candidate, module in BACKENDS.items()}
    chosen = next(candidate for candidate, reason in reasons.items() if reason is None)
    if (chosen, device.type) not in _said:
        _said.add((chosen, device.type))
        passed = [f"{candidate} not: {reason}" for candidate, reason in reasons.items() if reason is not None]
        log.info("; ".join([f"attention backend on {device.type}: {chosen}", *passed]))
    return chosen
