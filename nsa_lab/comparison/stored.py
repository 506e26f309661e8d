"""A comparison kept beside its rows, so that a report needs no other file."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nsa_lab.comparison.spec import Comparison, Experiment
from nsa_lab.errors import NsaLabError, short
from nsa_lab.files import read_json, write_json

STORED = "comparison.json"
SHAPE: dict[str, Any] = {
    "command": str,
    "path": str,
    "experiments": [{"*": object}],
    "variants": {"*": {"*": object}},
    "references": [str],
    "metrics": {"*": str},
    "seeds": [int],
    "preset": str,
    "question": str,
    "branches": {"*": [str]},
}
"""What STORED holds: `[one]` is a list of such, `{"*": one}` an object of such."""


def store(comparison: Comparison, folder: Path) -> None:
    """Write STORED into `folder`."""
    tree = {key: value for key, value in asdict(comparison).items() if key in SHAPE} | {"path": str(comparison.path)}
    tree["experiments"] = [asdict(one) | {"file": str(one.file)} for one in comparison.experiments]
    write_json(folder / STORED, tree)


def command(comparison: Comparison, variants: Sequence[str], seeds: int | None, overrides: Sequence[str]) -> str:
    """What makes the rows of a comparison, but for workers and folders."""
    chosen = ["--variants", ",".join(variants)] * bool(variants) + ["--seeds", str(seeds)] * (seeds is not None)
    return shlex.join(["nsa-lab", verb(comparison.path), str(comparison.path), *comparison.asked, *chosen, *overrides])


def verb(file: Path) -> str:
    """The command that runs the comparison of a file."""
    return "compare" if file.suffix == ".py" else "ablate"


def stored_command(folder: Path) -> str:
    """The command of the comparison that a folder holds, nothing where there is none or it is damaged."""
    try:
        return str(read_json(folder / STORED, "").get("command", ""))
    except NsaLabError:
        return ""


def load_stored(folder: Path) -> Comparison:
    """The comparison of a folder. Raises NsaLabError where it is damaged."""
    file, remedy = folder / STORED, "run the comparison again: what is trained is not trained again"
    tree = read_json(file, remedy, tuple(SHAPE))
    if wrong := [key for key, shape in SHAPE.items() if not _fits(tree.get(key), shape)]:
        raise NsaLabError(f"{file} is damaged ({wrong[0]} is {short(tree.get(wrong[0]))}); {remedy}")
    try:
        experiments = tuple(_experiment(one) for one in tree["experiments"])
        if not experiments or not all(isinstance(one.name, str) for one in experiments):
            raise ValueError("its experiments have no names")
        return Comparison(
            path=Path(tree["path"]),
            experiments=experiments,
            variants=dict(tree["variants"]),
            references=tuple(tree["references"]),
            metrics=dict(tree["metrics"]),
            seeds=tuple(tree["seeds"]),
            preset=tree["preset"],
            question=tree["question"],
            branches={name: tuple(own) for name, own in tree["branches"].items()},
            command=tree["command"],
        )
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise NsaLabError(f"{file} is damaged ({type(error).__name__}: {error}); {remedy}") from error


def _experiment(tree: dict[str, Any]) -> Experiment:
    return Experiment(**{**tree, "file": Path(tree["file"]), "converted": tuple(tree.get("converted", ()))})


def _fits(value: Any, shape: Any) -> bool:
    if isinstance(shape, list):
        return isinstance(value, list) and all(_fits(one, shape[0]) for one in value)
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(_fits(one, shape["*"]) for one in value.values())
    return isinstance(value, shape)
