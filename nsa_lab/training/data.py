"""Batches for training: which clips step `n` sees is a function of the seed and `n` alone."""

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from nsa_lab.data import VideoDataset
from nsa_lab.model.context_parallel import ContextGroup
from nsa_lab.training.packing import fill_rate, filled
from nsa_lab.training.ranks import ALONE, Ranks

Collate = Callable[[Sequence[Any]], dict[str, Any]]


@lru_cache(maxsize=2)
def _permutation(size: int, seed: int, epoch: int) -> list[int]:
    return np.random.default_rng([seed, epoch]).permutation(size).tolist()


class EqualBatches:
    """Endless batches of `batch_size` samples out of seeded permutations laid end to end."""

    def __init__(self, size: int, batch_size: int, seed: int):
        self.size, self.batch_size, self.seed = size, batch_size, seed

    def batch(self, number: int) -> list[int]:
        """The sample indices of batch `number`, counted from 0 over the whole run and all processes."""
        places = range(number * self.batch_size, (number + 1) * self.batch_size)
        return [_permutation(self.size, self.seed, place // self.size)[place % self.size] for place in places]


class FilledBatches:
    """Endless batches of at most `budget` tokens: those of the first epoch, then those of the next, each shuffled anew.

    An epoch holds every sample once. `lengths` are the samples' tokens, each at most `budget`.
    """

    def __init__(self, lengths: Sequence[int], budget: int, seed: int):
        self.lengths, self.budget, self.seed = lengths, budget, seed
        self.ends = [0]
        self.epoch = lru_cache(maxsize=2)(self._epoch)

    def batch(self, number: int) -> list[int]:
        """The sample indices of batch `number`, counted from 0 over the whole run and all processes."""
        while self.ends[-1] <= number:
            self.ends.append(self.ends[-1] + len(self.epoch(len(self.ends) - 1)))
        epoch = bisect_right(self.ends, number) - 1
        return self.epoch(epoch)[number - self.ends[epoch]]

    def _epoch(self, number: int) -> list[list[int]]:
        return filled(_permutation(len(self.lengths), self.seed, number), self.lengths, self.budget)


class StepSampler(Sampler[list[list[int]]]):
    """Endless optimiser steps, each the `accumulate` batches of this process; begins at number `start`.

    Of `world` processes each takes its part of a step; together they are the step of one process. Processes that share
    samples take the same ones.
    """

    def __init__(self, batches: EqualBatches | FilledBatches, accumulate: int, ranks: Ranks = ALONE):
        self.batches, self.accumulate, self.ranks = batches, accumulate, ranks.data
        self.start = 0

    def step(self, number: int) -> list[list[int]]:
        """The sample indices of each batch of this process in step `number`, counted from 0 over the whole run."""
        first = (number * self.ranks.world + self.ranks.rank) * self.accumulate
        return [self.batches.batch(first + place) for place in range(self.accumulate)]

    def __iter__(self) -> Iterator[list[list[int]]]:
        number = self.start
        while True:
            yield self.step(number)
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


class Batched(Dataset):
    """The examples of a batch by its sample indices.

    For a bad one, where that is allowed, the next good one stands in; a `filled` batch has no room for it and lacks it.
    """

    def __init__(self, dataset: VideoDataset, filled: bool):
        self.dataset, self.filled = dataset, filled

    def __getitem__(self, indices: Sequence[int]) -> list[Any]:
        return self.dataset.usable(indices) if self.filled else [self.dataset[index] for index in indices]


@dataclass(frozen=True)
class StepCollate:
    """The micro-batches of one optimiser step; each knows those of its labelled tokens that are this process's
    as `step_labels`.

    It stands alone, and not with the trainer, since it travels to loading processes, pickled where they are spawned.
    """

    collate: Collate

    def __call__(self, step: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
        batches = [self.collate(examples) for examples in step]
        labels = sum(len(batch["label_rows"]) for batch in batches)
        return [batch | {"step_labels": labels} for batch in batches]


class VideoDataModule(L.LightningDataModule):
    """Packed batches of a training and a validation dataset; `collate` packs a list of examples into one batch.

    With the `lengths` of the training samples their batches are filled up to `tokens_per_batch` instead.
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
        tokens_per_batch: int | None = None,
        lengths: Sequence[int] | None = None,
    ):
        super().__init__()
        self.train, self.val, self.collate, self.first = train, val, collate, ranks.first
        self.batch_size, self.accumulate, self.workers = batch_size, accumulate, workers
        self.filled = FilledBatches(lengths, tokens_per_batch, seed) if lengths and tokens_per_batch else None
        batches = self.filled or EqualBatches(len(train), batch_size, seed)
        self.sampler = StepSampler(batches, accumulate, ranks)
        self.val_sampler = ValidationBatchSampler(len(val), batch_size, ranks)
        self.batches: MicroBatches | None = None

    def train_dataloader(self) -> "MicroBatches":
        """Batches from the trainer's step onwards, so that a resumed run draws what it would have drawn."""
        self.sampler.start = self.trainer.global_step
        train, collate = Batched(self.train, filled=self.filled is not None), StepCollate(self.collate)
        self.batches = MicroBatches(train, collate_fn=collate, batch_sampler=self.sampler, **self._workers())
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
        return [self.train.samples[index].id for index in self.sampler.step(step)[part]]

    def packing(self) -> dict[str, float]:
        """Of batches that are filled to a budget, in the first epoch: `data/fill`, the share of it that is, and
        `data/steps_per_epoch`.
        """
        if self.filled is None:
            return {}
        batches, of = self.filled.epoch(0), self.filled
        steps = len(batches) / (self.accumulate * self.sampler.ranks.world)
        return {"data/fill": fill_rate(batches, of.lengths, of.budget), "data/steps_per_epoch": steps}

    def skipped(self) -> dict[str, float]:
        """`data/skipped/train` and so on: samples that could not be used, where there were any.

        Rows that were left out before all processes know, and the first alone counts.
        """
        found: dict[str, float] = {}
        for split, dataset in (("train", self.train), ("val", self.val)):
            count = sum(dataset.skipped().values()) - (0 if self.first else sum(dataset.left_out.values()))
            found |= {f"data/skipped/{split}": float(count)} if count else {}
        return found

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
