"""Which implementation runs the attention ops: chosen once, said aloud, never changed silently."""

import logging
from types import ModuleType

import torch

from nsa_lab.attention.backends import fla_path, reference, torch_path, triton_path
from nsa_lab.errors import NsaLabError

BACKENDS: dict[str, ModuleType] = {
    "triton": triton_path,
    "torch": torch_path,
    "fla": fla_path,
    "reference": reference,
}
"""In the order `auto` prefers. Each has `why_not(device, named) -> str | None` and the ops of `reference`.

`named` tells whether the backend was asked for by its name: what is only for tests or comparison says no otherwise.
A backend may have `video_nsa`, which runs the three standard branches in one call (see triton_path), and
`why_not_design(attention, head_dim)`, which names the rule of its that a design breaks.
"""

log = logging.getLogger(__name__)
_said: set[tuple[str, str]] = set()


def choose_backend(name: str, device: torch.device) -> str:
    """The backend that `name` asks for on `device`; `auto` is the first that can run there, and says so once.

    Raises NsaLabError where the named one cannot run, with its reason.
    """
    if name != "auto":
        reason = BACKENDS[name].why_not(device, named=True)
        if reason is not None:
            raise NsaLabError(f"attention.backend={name} cannot run on {device}: {reason}; use attention.backend=auto")
        return name
    passed = []
    for candidate, module in BACKENDS.items():
        reason = module.why_not(device, named=False)
        if reason is None:
            break
        passed.append(f"{candidate} not: {reason}")
    if (candidate, device.type) not in _said:
        _said.add((candidate, device.type))
        log.info("; ".join([f"attention backend on {device.type}: {candidate}", *passed]))
    return candidate
