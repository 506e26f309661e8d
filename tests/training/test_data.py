import pickle
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import TensorDataset

from nsa_lab.training.data import EqualBatches, StepSampler, VideoDataModule


def sampler_of(size, batch_size, seed, accumulate=1):
    return StepSampler(EqualBatches(size, batch_size, seed), accumulate)


def test_step_is_a_function_of_seed_and_number_alone():
    sampler, other = sampler_of(10, 3, seed=1), sampler_of(10, 3, seed=1)
    ahead = [other.step(number) for number in (40, 7, 0)]
    assert ahead == [sampler.step(number) for number in (40, 7, 0)]
    assert sampler_of(10, 3, seed=2).step(0) != sampler.step(0)


def test_iteration_begins_at_start():
    sampler = sampler_of(10, 3, seed=1)
    from_zero = list(islice(sampler, 8))
    sampler.start = 5
    assert list(islice(sampler, 3)) == from_zero[5:]


def test_every_epoch_holds_each_sample_once_in_another_order():
    sampler = sampler_of(10, 2, seed=0, accumulate=2)
    drawn = [index for step in islice(sampler, 10) for batch in step for index in batch]
    epochs = [drawn[first : first + 10] for first in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_batch_may_be_larger_than_the_data():
    assert len(EqualBatches(2, 5, seed=0).batch(0)) == 5


class Labelled(TensorDataset):
    """Sample i has i + 1 labelled tokens after one that predicts nothing."""

    def __init__(self, count):
        super().__init__(torch.arange(count))
        self.samples = []

    def __getitem__(self, index):
        return torch.tensor([-100] * 2 + [1] * (index + 1))


def collate(rows):
    labels = torch.cat(list(rows))[None]
    return {"labels": labels, "label_rows": (labels[0, 1:] >= 0).nonzero().squeeze(1) + 1}


@pytest.mark.parametrize(
    ("workers", "context"), [(0, None), (1, "fork"), pytest.param(1, "spawn", marks=pytest.mark.slow)]
)
def test_micro_batches_of_a_step_know_the_labels_of_all_of_it(workers, context):
    """Also where loading processes are spawned, as under a sweep: what travels there knows nothing of the trainer."""
    drawn = {}
    for size, times in ((4, 1), (2, 2), (1, 4)):
        settings = {"batch_size": size, "accumulate": times, "seed": 3, "workers": workers}
        data = VideoDataModule(Labelled(10), Labelled(2), collate, **settings)
        data.trainer = SimpleNamespace(global_step=0, schedule=lambda step: step)
        loader = data.train_dataloader()
        pickle.dumps(loader.collate_fn)
        loader.multiprocessing_context = context
        steps = list(islice(loader, 3 * times))
        for first in range(0, len(steps), times):
            labels = sum(int((b["labels"][:, 1:] >= 0).sum()) for b in steps[first : first + times])
            assert [b["step_labels"] for b in steps[first : first + times]] == [labels] * times
        drawn[size] = torch.cat([b["labels"][0] for b in steps])
    assert torch.equal(drawn[4], drawn[2]) and torch.equal(drawn[4], drawn[1])
