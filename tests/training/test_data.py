from itertools import islice

from nsa_lab.training.data import StepBatchSampler


def test_batch_is_a_function_of_seed_and_number_alone():
    sampler, other = StepBatchSampler(10, 3, seed=1), StepBatchSampler(10, 3, seed=1)
    ahead = [other.batch(number) for number in (40, 7, 0)]
    assert ahead == [sampler.batch(number) for number in (40, 7, 0)]
    assert StepBatchSampler(10, 3, seed=2).batch(0) != sampler.batch(0)


def test_iteration_begins_at_start():
    sampler = StepBatchSampler(10, 3, seed=1)
    from_zero = list(islice(sampler, 8))
    sampler.start = 5
    assert list(islice(sampler, 3)) == from_zero[5:]


def test_every_epoch_holds_each_sample_once_in_another_order():
    sampler = StepBatchSampler(10, 4, seed=0)
    drawn = [index for batch in islice(sampler, 10) for index in batch]
    epochs = [drawn[first : first + 10] for first in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_batch_may_be_larger_than_the_data():
    assert len(StepBatchSampler(2, 5, seed=0).batch(0)) == 5
