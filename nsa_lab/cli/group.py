"""A group of commands of which one may be left out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import typer
from typer.core import TyperGroup

from nsa_lab.errors import NsaLabError

USAGE_ERROR: Any = typer.BadParameter.__base__
"""Typer's own, whose place differs from version to version."""


class OneLineGroup(TyperGroup):
    """A group whose usage errors, its commands' too, are NsaLabErrors in place of boxes. Help stays help."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with _one_line():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        with _one_line():
            return super().invoke(ctx)


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except USAGE_ERROR as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            raise
        said = " ".join(error.format_message().split()).replace("Value error, ", "").rstrip(".")
        path = error.ctx.command_path if error.ctx else "nsa-lab"
        raise NsaLabError(f"{said} ({path} --help)") from error


class DefaultGroup(TyperGroup):
    """`GROUP ARGUMENTS` stands for `GROUP DEFAULT ARGUMENTS` where the first of them is no command."""

    default: ClassVar[str]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = [self.default, *args]
        return super().parse_args(ctx, args)


class ListGroup(DefaultGroup):
    """A group that lists where nothing is asked."""

    default = "list"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or [self.default])
