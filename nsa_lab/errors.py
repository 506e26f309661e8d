"""Errors that are the user's to mend: one clear line, exit code 2, no traceback."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from nsa_lab.redact import hide


class NsaLabError(Exception):
    """Something the user can mend. The message names the thing and the remedy, in one line, and no password."""

    def __init__(self, message: str = ""):
        super().__init__(hide(message))


@dataclass(frozen=True)
class Problem:
    """One fault in a config: where it is, what stands there, and what to do."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class ConfigError(NsaLabError):
    """All faults found in a config, one line each."""

    def __init__(self, problems: list[Problem]):
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


def nearest(value: Any, known: Iterable[str]) -> str:
    """`did you mean ...? ` where one of `known` is like `value`, else nothing."""
    near = difflib.get_close_matches(str(value), list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}? " if near else ""


def first_line(error: BaseException) -> str:
    """What an error says first, else its kind."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def short(value: Any) -> str:
    """`value` as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
