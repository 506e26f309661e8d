"""Silences Lightning where it speaks of things that this project decides itself, and nowhere else."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

UNIMPORTANT = (
    ".*does not have many workers which may be a bottleneck.*",  # data.workers is the user's to set
    ".*Trying to infer the `batch_size` from an ambiguous collection.*",  # nothing is averaged over batches
    ".*isinstance.treespec, LeafSpec.. is deprecated.*",  # Lightning's own use of torch
    ".*Found .* module.* in eval mode at the start of training.*",  # what is frozen is meant to be
    ".*GPU available but not used.*",  # training.accelerator says so
    ".*have overridden `on_before_batch_transfer` in `LightningModule`.*",  # it is there that a batch is divided
)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """No banner, no tips, none of the UNIMPORTANT warnings; everything else still comes through."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in UNIMPORTANT:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
