"""Errors that are the user's to mend: one clear line, exit code 2, no traceback."""

from dataclasses import dataclass


class NsaLabError(Exception):
    """Something the user can mend. The message names the thing and the remedy, in one line."""


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
