"""A progress bar on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(what: str, quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    """What to tell of how many are done, of how many, and a note; `what` says what was done with them."""
    from nsa_lab.progress import Bar

    with Bar(what, None, disable=quiet) as bar:

        def tell(done: int, total: int, note: str) -> None:
            bar.update(bar.task, total=total, completed=done, note=note)

        yield tell
