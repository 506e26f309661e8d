"""A comparison kept beside its rows, so that a report needs no other file."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from nsa_lab.comparison.spec import Comparison, Experiment
from nsa_lab.errors import NsaLabError
from nsa_lab.files import read_json, write_json

STORED = "comparison.json"
KEYS = (
    "command",
    "path",
    "experiments",
    "variants",
    "references",
    "metrics",
    "seeds",
    "preset",
    "question",
    "branches",
)


def store(comparison: Comparison, overrides: Sequence[str], folder: Path) -> None:
    """Write STORED into `folder`."""
    tree = asdict(comparison) | {"path": str(comparison.path), "command": command(comparison, overrides)}
    tree["experiments"] = [asdict(one) | {"file": str(one.file)} for one in comparison.experiments]
    write_json(folder / STORED, tree)


def command(comparison: Comparison, overrides: Sequence[str]) -> str:
    """What makes the rows of a comparison, but for workers and folders."""
    verb = "compare" if comparison.path.suffix == ".py" else "ablate"
    preset = ["--preset", comparison.preset] if comparison.preset else []
    return shlex.join(["nsa-lab", verb, str(comparison.path), *preset, *overrides])


def load_stored(folder: Path) -> tuple[Comparison, str]:
    """The comparison of a folder, and the command that made its rows. Raises NsaLabError where it is damaged."""
    file, remedy = folder / STORED, "run the comparison again: what is trained is not trained again"
    tree = read_json(file, remedy, KEYS)
    try:
        experiments = tuple(Experiment(**{**one, "file": Path(one["file"])}) for one in tree["experiments"])
        comparison = Comparison(
            path=Path(tree["path"]),
            experiments=experiments,
            variants=dict(tree["variants"]),
            references=tuple(tree["references"]),
            metrics=dict(tree["metrics"]),
            seeds=tuple(tree["seeds"]),
            preset=tree["preset"],
            question=tree["question"],
            branches={name: tuple(own) for name, own in tree["branches"].items()},
        )
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise NsaLabError(f"{file} is damaged ({type(error).__name__}: {error}); {remedy}") from error
    return comparison, str(tree["command"])
