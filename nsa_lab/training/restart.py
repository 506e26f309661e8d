"""A checkpoint taken up by another number of processes."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from nsa_lab.files import UNFINISHED
from nsa_lab.model.sharded import as_one, is_sharded
from nsa_lab.training.ranks import Ranks


def recount_batches(checkpoint: dict[str, Any], accumulate: int) -> None:
    """Set the batches that Lightning counted to those of a process that takes `accumulate` of them a step, in place."""
    counts = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    more = checkpoint["global_step"] * accumulate - counts["total"]["ready"]
    for scope in ("total", "current"):
        counts[scope] = {name: count + more for name, count in counts[scope].items()}


@contextmanager
def fitting(checkpoint: Path | None, ranks: Ranks) -> Iterator[Path | None]:
    """The checkpoint in a form that so many processes go on from: parts become a file for one alone."""
    if checkpoint is None or ranks.world > 1 or not is_sharded(checkpoint):
        yield checkpoint
        return
    with tempfile.TemporaryDirectory(dir=checkpoint.parent, suffix=UNFINISHED, prefix=".") as folder:
        one = Path(folder) / checkpoint.name
        torch.save(as_one(checkpoint), one)
        yield one
