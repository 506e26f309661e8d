"""Values on the command line."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nsa_lab.errors import NsaLabError

if TYPE_CHECKING:
    from nsa_lab.config import ExperimentConfig

Experiment = Annotated[
    list[str] | None,
    typer.Argument(help="YAML file (without one, the defaults) and settings on top.", metavar="CONFIG|KEY=VALUE"),
]


def refuse_empty(arguments: Sequence[str]) -> None:
    """Raise NsaLabError on an empty argument, such as an unset variable leaves: as a path it would be this folder."""
    if "" in arguments:
        place = arguments.index("")
        before = f", after {arguments[place - 1]}" if place else ""
        raise NsaLabError(f"argument {place + 1} is empty{before}; give a value, or leave it out")


def load_experiment(arguments: list[str]) -> "ExperimentConfig":
    """The config of `[CONFIG] [KEY=VALUE]...`; without a file, the defaults and one task, so that it is complete."""
    from nsa_lab.config import load_config

    if arguments and "=" not in arguments[0]:
        return load_config(arguments[0], arguments[1:])
    chosen = any(re.match(r"tasks(\.\w+(\.enabled)?)?=|data\.annotations=", text) for text in arguments)
    return load_config(None, arguments if chosen else ["tasks.needle.enabled=true", *arguments])


def output_of(overrides: Sequence[str]) -> str:
    """The output folder by `output.dir=DIR`. Raises NsaLabError on another setting, which would not be read."""
    from nsa_lab.config import load_config
    from nsa_lab.config.load import parse_overrides

    if others := [key for key in parse_overrides(overrides) if key != "output.dir"]:
        raise NsaLabError(f"{others[0]} is not read here; only output.dir=DIR is, where the sweep was run")
    # A task makes the config complete.
    return load_config(None, ["tasks.needle.enabled=true", *overrides]).output.dir


def home_of(model: str, runs: str) -> Path:
    """Where what is found of MODEL goes: its folder, or one in the folder `runs` where it is a hub id."""
    return Path(model) if Path(model).is_dir() else Path(runs) / model.replace("/", "--")


def whole_numbers(text: str, option: str) -> list[int]:
    """The numbers of `512,2048`. Raises NsaLabError that names `option` where it is no such list."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise NsaLabError(f"{option} {text!r} is not a list of whole numbers; write for example 512,2048") from error


def names(text: str | None, option: str) -> list[str]:
    """The names of `uniform, frame`, each once; none where the option is not given. Raises NsaLabError where one is
    empty."""
    found = [] if text is None else [part.strip() for part in text.split(",")]
    if "" in found:
        raise NsaLabError(f"{option} {text!r} has an empty name; write for example uniform,frame")
    return list(dict.fromkeys(found))


def finite(value: float | None) -> float | None:
    """An option's callback: its value. Raises typer.BadParameter on nan and inf, which no range keeps out."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no number; write one in digits")
    return value


Minutes = Annotated[
    float | None,
    typer.Option(help="Start no training after this long.", metavar="MINUTES", min=0.1, callback=finite),
]
