"""A sweep's trials in the words of a view."""

from collections.abc import Mapping, Sequence
from typing import Any

from nsa_lab.runner.view import Shown, duration, number
from nsa_lab.search.rows import Row

__all__ = ["duration", "number", "short_names", "shown", "words"]


def shown(row: Row) -> Shown:
    """A finished trial."""
    again = f"retry {row.retry}" if row.retry else ""
    note = "  ".join(part for part in (again, words(row.params), row.reason) if part)
    return Shown(row.name, row.state, row.values, row.seconds, note)


def words(params: Mapping[str, Any]) -> str:
    """Parameters without the common beginnings of their dotted names, as far as they stay distinct."""
    short = short_names(list(params))
    return " ".join(f"{short[name]}={value}" for name, value in params.items())


def short_names(names: Sequence[str]) -> dict[str, str]:
    """The shortest ends of dotted names, two parts or more, that tell them apart."""
    short = {}
    for name in names:
        parts = name.split(".")
        ends = [".".join(parts[-n:]) for n in range(min(2, len(parts)), len(parts) + 1)]
        unique = [end for end in ends if sum(f".{other}".endswith(f".{end}") for other in names) == 1]
        short[name] = unique[0] if unique else name
    return short
