"""Checkpoints in parts: a folder that several processes wrote together, read by one."""

from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

TABLE, REST = ".metadata", "meta.pt"
"""Which part holds which tensor, and what else Lightning keeps; each is the last that its writer writes."""


def is_sharded(checkpoint: Path) -> bool:
    """Whether `checkpoint` is a folder of parts."""
    return checkpoint.is_dir()


def read_rest(checkpoint: Path) -> dict[str, Any]:
    """All but the tensors. Raises OSError where a part is missing, and torch.load's errors."""
    (checkpoint / TABLE).stat()
    return torch.load(checkpoint / REST, map_location="cpu", weights_only=True)


def read_tensors(checkpoint: Path, *keys: str) -> dict[str, Any]:
    """The tensors, put together on the CPU: `state_dict` by name, `optimizer_0`; of these `keys`, or all.

    The table of parts is a pickle (torch.distributed.checkpoint's format): read only what you trust.
    """
    state: dict[str, Any] = {}
    planner = _EmptyStateDictLoadPlanner(keys=set(keys) or None)
    _load_state_dict(state, FileSystemReader(checkpoint), planner=planner, no_dist=True)
    return state


def as_one(checkpoint: Path) -> dict[str, Any]:
    """The content that one process would have written in its file."""
    content = read_rest(checkpoint) | read_tensors(checkpoint)
    content["optimizer_states"] = [_numbered(content.pop("optimizer_0"))]
    return content


def _numbered(state: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's state dict by parameter name to one by number, counted through its groups."""
    numbers: dict[str, int] = {}
    groups = []
    for group in state["param_groups"]:
        numbers |= {name: len(numbers) + place for place, name in enumerate(group["params"])}
        groups.append(group | {"params": [numbers[name] for name in group["params"]]})
    return {"state": {numbers[name]: value for name, value in state["state"].items()}, "param_groups": groups}
