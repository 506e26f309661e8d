"""Checkpoints in parts: a folder that several processes wrote together, read by one."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

TABLE, REST = ".metadata", "meta.pt"
"""Which part holds which tensor, and what else Lightning keeps; each is the last that its writer writes."""

KNOWN = {
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size",),
    "pathlib": ("PosixPath",),
    "pathlib._local": ("PosixPath",),  # its name in Python 3.13
}  # fmt: skip
"""What a table of parts is made of, by module; and torch's dtypes."""


class _Table(pickle.Unpickler):
    """Reads a table of parts, which is a pickle, and makes nothing but what such a table is made of."""

    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not dtype and name not in KNOWN.get(module, ()):
            raise ValueError(f"its table of parts names {module}.{name}")
        return super().find_class(module, name)


def refuse_code(checkpoint: Path) -> None:
    """Raise ValueError where reading the parts could run code: torch reads the table, and values that are no tensors,
    as pickles; or where they are not all in the folder, or one is cut off. OSError where a part is missing, and
    torch.load's errors."""
    table = _table(checkpoint)
    for index, info in table.storage_data.items():
        part = (checkpoint / info.relative_path).resolve()
        if part.parent != checkpoint.resolve() or info.transform_descriptors is not None:
            raise ValueError(f"its table of parts looks for {index.fqn} at {info.relative_path}")
        _need(part)
        if info.offset + info.length > part.stat().st_size:
            raise ValueError(f"its part {part.name} is cut off")
        if isinstance(table.state_dict_metadata.get(index.fqn), TensorStorageMetadata):
            continue
        with open(part, "rb") as stream:
            stream.seek(info.offset)
            torch.load(io.BytesIO(stream.read(info.length)), weights_only=True)


def changed_in(checkpoint: Path) -> str | None:
    """What does not have the sum that torch wrote beside it, where anything does not. After `refuse_code`."""
    for index, info in _table(checkpoint).storage_data.items():
        with open(checkpoint / info.relative_path, "rb") as stream:
            stream.seek(info.offset)
            if changed_part(io.BytesIO(stream.read(info.length))):
                return str(index.fqn)
    return changed_part(checkpoint / REST)


def changed_part(saved: Path | IO[bytes]) -> str | None:
    """The first part of what torch.save wrote that does not have the sum stored beside it."""
    with zipfile.ZipFile(saved) as file:
        return file.testzip()


def _table(checkpoint: Path) -> Any:
    _need(checkpoint / TABLE)
    return _Table(io.BytesIO((checkpoint / TABLE).read_bytes())).load()


def _need(part: Path) -> None:
    if not part.is_file():
        raise FileNotFoundError(f"its part {part.name} is missing")


def is_sharded(checkpoint: Path) -> bool:
    """Whether `checkpoint` is a folder of parts."""
    return checkpoint.is_dir()


def read_rest(checkpoint: Path) -> dict[str, Any]:
    """All but the tensors. Raises what `refuse_code` does."""
    refuse_code(checkpoint)
    return _rest(checkpoint)


def _rest(checkpoint: Path) -> dict[str, Any]:
    _need(checkpoint / REST)
    return torch.load(checkpoint / REST, map_location="cpu", weights_only=True)


def read_tensors(checkpoint: Path, *keys: str) -> dict[str, Any]:
    """The tensors, put together on the CPU: `state_dict` by name, `optimizer_0`; of these `keys`, or all. Raises what
    `refuse_code` does."""
    refuse_code(checkpoint)
    return _tensors(checkpoint, *keys)


def _tensors(checkpoint: Path, *keys: str) -> dict[str, Any]:
    state: dict[str, Any] = {}
    planner = _EmptyStateDictLoadPlanner(keys=set(keys) or None)
    _load_state_dict(state, FileSystemReader(checkpoint), planner=planner, no_dist=True)
    return state


class Scattered:
    """A tensor of a checkpoint in parts, put together on the CPU when rows of it are asked for, and for that long."""

    def __init__(self, reader: FileSystemReader, key: str, kept: TensorStorageMetadata):
        self.reader, self.key = reader, key
        self.shape, self.dtype = kept.size, kept.properties.dtype

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: Any) -> Tensor:
        whole = torch.empty(self.shape, dtype=self.dtype)
        _load_state_dict({self.key: whole}, self.reader, planner=DefaultLoadPlanner(), no_dist=True)
        return whole[rows]


class _Reader(FileSystemReader):
    """Reads the table of parts once."""

    def __init__(self, checkpoint: Path):
        super().__init__(checkpoint)
        self.table = super().read_metadata()

    def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
        return self.table


def scattered(checkpoint: Path, within: str) -> dict[str, Scattered]:
    """The tensors of the dict `within` by name, none of them read yet. Raises what `refuse_code` does."""
    refuse_code(checkpoint)
    reader, start = _Reader(checkpoint), f"{within}."
    return {
        key.removeprefix(start): Scattered(reader, key, kept)
        for key, kept in reader.table.state_dict_metadata.items()
        if key.startswith(start) and isinstance(kept, TensorStorageMetadata)
    }


def as_one(checkpoint: Path) -> dict[str, Any]:
    """The content that one process would have written in its file. Raises what `refuse_code` does."""
    refuse_code(checkpoint)
    content = _rest(checkpoint) | _tensors(checkpoint)
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
