"""Numbers on the command line."""

import math
from typing import Annotated

import typer

from nsa_lab.errors import NsaLabError


def whole_numbers(text: str, option: str) -> list[int]:
    """The numbers of `512,2048`. Raises NsaLabError that names `option` where it is no such list."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise NsaLabError(f"{option} {text!r} is not a list of whole numbers; write for example 512,2048") from error


def finite(value: float | None) -> float | None:
    """An option's callback: its value. Raises typer.BadParameter on nan and inf, which no range keeps out."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no number; write one in digits")
    return value


Minutes = Annotated[
    float | None,
    typer.Option(help="Start no training after this long.", metavar="MINUTES", min=0.1, callback=finite),
]
