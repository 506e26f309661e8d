"""Which implementation runs the attention ops: chosen once, said aloud, never changed silently."""

import logging

import torch

from nsa_lab.attention.backends.fla_path import Fla
from nsa_lab.attention.backends.reference import Reference
from nsa_lab.attention.backends.torch_path import Torch
from nsa_lab.attention.backends.triton_path import Triton
from nsa_lab.attention.ops import Backend
from nsa_lab.errors import NsaLabError

BACKENDS: dict[str, Backend] = {
    "triton": Triton(),
    "torch": Torch(),
    "fla": Fla(),
    "reference": Reference(),
}
"""In the order `auto` prefers."""

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
    for candidate, backend in BACKENDS.items():
        reason = backend.why_not(device, named=False)
        if reason is None:
            break
        passed.append(f"{candidate} not: {reason}")
    if (candidate, device.type) not in _said:
        _said.add((candidate, device.type))
        log.info("; ".join([f"attention backend on {device.type}: {candidate}", *passed]))
    return candidate
