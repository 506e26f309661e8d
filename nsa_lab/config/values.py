"""One value against the type of its setting: what is taken, and what is said where it does not fit."""

import types
import typing
from typing import Any

from nsa_lab.errors import nearest, short

MISSING = "???"
LARGEST = 2**53
"""Above it a number is not exact as a float any more, and no count here means anything."""
NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "a string", types.NoneType: "null"}


def widened(value: Any, expected: Any) -> Any:
    """Values as people write them: 1e3 for an integer, 1 for a float, 7 for a string, true for the choice "true"."""
    kinds = _kinds(expected)
    if isinstance(value, bool) and str(value).lower() in kinds:
        return str(value).lower()
    if type(value) in kinds or isinstance(value, bool):
        return value
    if int in kinds and isinstance(value, float) and value.is_integer():
        return int(value)
    if float in kinds and isinstance(value, int) and abs(value) <= LARGEST:
        return float(value)
    if str in kinds and isinstance(value, int | float):
        return str(value)
    return value


def fault(value: Any, expected: Any) -> str | None:
    """What is wrong with `value` where the type `expected` is declared, or None."""
    if isinstance(value, str) and "${" in value:
        return f"{short(value)} holds '${{', and nothing is put in its place here; write the value itself"
    if value == MISSING:
        return f"{MISSING} stands for a value that is missing; write one, or leave the key out"
    if type(value) is int and abs(value) > LARGEST:
        return f"{short(value)} is beyond the largest number that a setting takes, {LARGEST}"
    if typing.get_origin(expected) is typing.Literal:
        choices = [str(choice) for choice in typing.get_args(expected)]
        if value in choices:
            return None
        return f"{short(value)} is not a choice; {nearest(value, choices)}allowed: {', '.join(choices)}"
    if type(value) in _kinds(expected):
        return None
    return f"{short(value)} is not {' or '.join(NAMES[kind] for kind in _kinds(expected))}"


def unknown_key(key: Any, known: list[str]) -> str:
    """What is said of a key that no config has."""
    return f"unknown key {key!r}; {nearest(key, known)}known: {', '.join(known)}"


def _kinds(expected: Any) -> tuple[Any, ...]:
    """The alternatives of `int | None`; a plain type is its own."""
    return typing.get_args(expected) or (expected,)
