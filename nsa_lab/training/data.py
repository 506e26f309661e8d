"""Batches for training: which clips step `n` sees is a function of the seed and `n` alone."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from nsa_lab.data import VideoDataset
from nsa_lab.model.context_parallel import ContextGroup
from nsa_lab.training.ranks import ALONE, Ranks

Collate = Callable[[Sequence[Any]], dict[str, Any]]


@lru_cache(maxsize=2)
def _permutation(size: int, seed: int, epoch: int) -> list[int]:
    return np.random.default_rng([seed, epoch]).permutation(size).tolist()


class StepBatchSampler(Sampler[list[int]]):
    """Endless batches, one an optimiser step, out of seeded permutations laid end to end; begins at number `start`.

    Of `world` processes each takes its part of `batch_size` samples; together they are the batch of one process.
    Processes that share samples take the same ones.
    """

    def __init__(self, size: int, batch_size: int, seed: int, ranks: Ranks = ALONE):
        self.size, self.batch_size, self.seed, self.ranks = size, batch_size, seed, ranks.data
        self.start = 0

    def batch(self, number: int) -> list[int]:
        """The sample indices of this process in batch `number`, counted from 0 over the whole run."""
        first = (number * self.ranks.world + self.ranks.rank) * self.batch_size
        places = range(first, first + self.batch_size)
        return [_permutation(self.size, self.seed, place // self.size)[place % self.size] for place in places]

    def __iter__(self) -> Iterator[list[int]]:
        number = self.start
        while True:
            yield self.batch(number)
            number += 1


class ValidationBatchSampler(Sampler[list[int]]):
    """Each process takes every `world`th batch of all samples in order, and all take as many.

    Where there are too few, the last are the first ones again: they keep the processes in step and do not count.
    """

    def __init__(self, size: int, batch_size: int, ranks: Ranks):
        self.size, self.batch_size, self.ranks = size, batch_size, ranks.data
        self.batches = -(-size // batch_size)

    def __len__(self) -> int:
        return -(-self.batches // self.ranks.world)

    @property
    def last_rank(self) -> int:
        """The process, or the group that shares it, that has the last of all batches, as its own last one."""
        return (self.batches - 1) % self.ranks.world

    def counts(self, place: int) -> bool:
        """Whether the batch at `place` of this process is one of the samples', not a repeated one."""
        return place * self.ranks.world + self.ranks.rank < self.batches

    def __iter__(self) -> Iterator[list[int]]:
        for place in range(len(self)):
            first = (place * self.ranks.world + self.ranks.rank) % self.batches * self.batch_size
            yield list(range(first, min(first + self.batch_size, self.size)))


class MicroBatches(DataLoader):
    """Loads optimiser steps and gives them micro-batch by micro-batch; `waited` adds up the seconds until they came."""

    waited = 0.0

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        steps = super().__iter__()
        while True:
            asked = time.perf_counter()
            step = next(steps, None)
            self.waited += time.perf_counter() - asked
            if step is None:
                return
            yield from step


@dataclass(frozen=True)
class StepCollate:
    """The micro-batches of one optimiser step; each knows those of its labelled tokens that are this process's
    as `step_labels`.

    It stands alone, and not with the trainer, since it travels to loading processes, pickled where they are spawned.
    """

    collate: Collate
    batch_size: int

    def __call__(self, examples: Sequence[Any]) -> list[dict[str, Any]]:
        size = self.batch_size
        batches = [self.collate(examples[first : first + size]) for first in range(0, len(examples), size)]
        labels = sum(len(batch["label_rows"]) for batch in batches)
        return [batch | {"step_labels": labels} for batch in batches]


class VideoDataModule(L.LightningDataModule):
    """Packed batches of a training and a validation dataset; `collate` packs a list of examples into one batch.

    group: the processes that share each sample with this one, which get a share of the batch each; None: none does.
    """

    group: ContextGroup | None = None

    def __init__(
        self,
        train: VideoDataset,
        val: VideoDataset,
        collate: Collate,
        *,
        batch_size: int,
        accumulate: int,
        seed: int,
        workers: int,
        ranks: Ranks = ALONE,
    ):
        super().__init__()
        self.train, self.val, self.collate = train, val, collate
        self.batch_size, self.accumulate, self.workers = batch_size, accumulate, workers
        self.sampler = StepBatchSampler(len(train), batch_size * accumulate, seed, ranks)
        self.val_sampler = ValidationBatchSampler(len(val), batch_size, ranks)
        self.batches: MicroBatches | None = None

    def train_dataloader(self) -> "MicroBatches":
        """Batches from the trainer's step onwards, so that a resumed run draws what it would have drawn."""
        self.sampler.start = self.trainer.global_step
        collate = StepCollate(self.collate, self.batch_size)
        self.batches = MicroBatches(self.train, collate_fn=collate, batch_sampler=self.sampler, **self._workers())
        return self.batches

    @property
    def waited(self) -> float:
        """Seconds that this process has waited for training batches."""
        return 0.0 if self.batches is None else self.batches.waited

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, collate_fn=self.collate, batch_sampler=self.val_sampler, **self._workers())

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int = 0) -> dict[str, Any]:
        return self.group.divide(batch) if self.group else batch

    def first_val_batch(self) -> dict[str, Any]:
        """The first validation batch, on the CPU."""
        count = min(self.batch_size, len(self.val))
        return self.collate([self.val[index] for index in range(count)])

    def sample_ids(self, batch: int) -> list[str]:
        """The ids of the samples in training batch number `batch`."""
        step, part = divmod(batch, self.accumulate)
        indices = self.sampler.batch(step)[part * self.batch_size : (part + 1) * self.batch_size]
        return [self.train.samples[index].id for index in indices]

    def skipped(self) -> dict[str, float]:
        """`data/skipped/train` and so on: samples that could not be used, where there were any."""
        counts = {"train": self.train.skipped(), "val": self.val.skipped()}
        return {f"data/skipped/{split}": float(sum(count.values())) for split, count in counts.items() if count}

    def skip_reasons(self) -> list[str]:
        """A line for each split with skipped samples: how many of how many, and why."""
        lines = []
        for split, dataset in (("train", self.train), ("val", self.val)):
            reasons = dataset.skipped()
            if reasons:
                why = ", ".join(f"{count} with {kind}" for kind, count in reasons.items())
                total = len(dataset) + sum(dataset.left_out.values())
                lines.append(f"{sum(reasons.values())} of {total} {split} samples were skipped ({why})")
        return lines

    def _workers(self) -> dict[str, Any]:
        return {
            "num_workers": self.workers,
            "persistent_workers": self.workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }
