"""Batches filled to a budget of tokens: which samples they hold, and that a step of them is a step of its samples."""

import itertools
import json
import logging
from itertools import islice

import numpy as np
import pytest
import torch

from nsa_lab.data import BadSampleError, VideoDataset, load_samples, load_tokenizer, measured, pack
from nsa_lab.data import lengths as lengths_file
from nsa_lab.errors import ConfigError, NsaLabError
from nsa_lab.tasks.encode import write_video
from nsa_lab.training import run
from nsa_lab.training.build import build, build_data
from nsa_lab.training.data import FilledBatches, StepSampler
from nsa_lab.training.directory import read_series
from nsa_lab.training.packing import fill_rate, filled
from nsa_lab.training.ranks import Ranks
from nsa_lab.training.score import score_answers

BUDGET = 100


def uneven(count, seed=0):
    """Lengths as of clips of a few lengths with questions of any: a third of the budget on average."""
    dice = np.random.default_rng(seed)
    return (dice.choice([8, 16, 24, 48], count) + dice.integers(4, 20, count)).tolist()


def test_batches_hold_each_sample_once_and_never_more_than_the_budget():
    lengths, order = uneven(1000), np.random.default_rng(1).permutation(1000).tolist()
    batches = filled(order, lengths, BUDGET)
    assert sorted(sample for batch in batches for sample in batch) == list(range(1000))
    assert max(sum(lengths[sample] for sample in batch) for batch in batches) <= BUDGET
    rate, alone = fill_rate(batches, lengths, BUDGET), fill_rate(filled(order, lengths, BUDGET, 1), lengths, BUDGET)
    assert rate > 0.95 > 0.4 > alone, (rate, alone)


@pytest.mark.parametrize(
    ("lengths", "batches"),
    [
        ([], []),
        ([100], [[0]]),
        ([60, 50, 40, 50], [[0, 2], [1, 3]]),
        ([10, 90, 90, 10], [[0, 1], [2, 3]]),
        ([100] * 3, [[0], [1], [2]]),
        ([20] * 6, [[0, 1, 2, 3, 4], [5]]),
    ],
)
def test_the_oldest_comes_first_and_then_the_longest_that_fits(lengths, batches):
    assert filled(range(len(lengths)), lengths, BUDGET) == batches


def test_no_sample_is_drawn_before_it_is_in_view():
    lengths = [90] * 50 + [10] * 50
    batches = filled(range(100), lengths, BUDGET, look_ahead=20)
    assert batches[0] == [0] and batches[31] == [31, 50], "50 comes into view with 31"
    for batch in batches:
        assert all(batch[0] <= sample < batch[0] + 20 for sample in batch)


def test_a_batch_is_a_function_of_seed_and_number_alone():
    lengths = uneven(300)
    one, other = FilledBatches(lengths, BUDGET, seed=1), FilledBatches(lengths, BUDGET, seed=1)
    ahead = [other.batch(number) for number in (700, 7, 0)]
    assert ahead == [one.batch(number) for number in (700, 7, 0)]
    assert FilledBatches(lengths, BUDGET, seed=2).batch(0) != one.batch(0)


def test_epochs_follow_each_other_each_with_every_sample_once_in_another_order():
    batches = FilledBatches(uneven(40), BUDGET, seed=0)
    sizes = [len(batches.epoch(number)) for number in range(3)]
    drawn = [batches.batch(number) for number in range(sum(sizes))]
    assert drawn == [batch for number in range(3) for batch in batches.epoch(number)]
    assert all(sorted(itertools.chain(*batches.epoch(number))) == list(range(40)) for number in range(3))
    assert batches.epoch(0) != batches.epoch(1)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_out_the_batches_of_each_step(world):
    def sampler(rank, of):
        return StepSampler(FilledBatches(uneven(200), BUDGET, 3), 4 // of, Ranks(rank, of))

    one, shares = sampler(0, 1), [sampler(rank, world) for rank in range(world)]
    for number in range(30):
        assert [batch for share in shares for batch in share.step(number)] == one.step(number)
        assert len({len(share.step(number)) for share in shares}) == 1
    one.start = 7
    assert list(islice(one, 2)) == [one.step(7), one.step(8)], "a resumed run draws what it would have drawn"


@pytest.fixture(scope="session")
def mixed(tmp_path_factory):
    """Eighteen clips of 2, 4 or 8 frames and of two shapes, whose answers have 1 to 12 words."""
    folder = tmp_path_factory.mktemp("mixed")
    found = []
    for i in range(18):
        tall = 84 if i % 4 == 0 else 56
        frames = (np.full((tall, 56, 3), (13 * i + 10 * f) % 250, np.uint8) for f in range(2 << i % 3))
        write_video(folder / f"{i}.mp4", frames, 2.0)
        talk = [
            {"from": "human", "value": "what colour?"},
            {"from": "gpt", "value": " ".join(["red"] * (1 + 11 * (i % 2)))},
        ]
        found.append({"id": f"row-{i}", "video": f"{i}.mp4", "conversations": talk})
    (folder / "rows.json").write_text(json.dumps(found))
    return folder


@pytest.fixture
def config(tiny, mixed, tmp_path):
    def make(**overrides):
        given = {
            "tasks.needle.enabled": False,
            "data.annotations": str(mixed / "rows.json"),
            "data.videos": str(mixed),
            "data.val_annotations": str(mixed / "rows.json"),
            "training.steps": 4,
            "training.val_every": 4,
            "training.batch_size": 2,
            "training.accumulate": 2,
            "training.tokens_per_batch": 150,
            "training.accelerator": "cpu",
            "training.threads": 1,
        }
        return tiny(given | overrides)

    return make


def dataset(config, **settings):
    tokenizer = load_tokenizer(config.data.tokenizer, config.data.cache_dir)
    samples, lengths = measured(load_samples(config)["train"], tokenizer, config.data, **settings)
    return VideoDataset(samples, tokenizer, config.data), lengths


def test_lengths_are_those_of_the_examples_and_are_kept(config, mixed, tmp_path, monkeypatch):
    config = config(**{"data.cache_dir": str(tmp_path / "cache")})
    found, lengths = dataset(config, most=100)
    assert lengths == [len(found[at].input_ids) for at in range(len(found))] and len(set(lengths)) > 4
    file = tmp_path / "cache" / lengths_file.FILE
    with open(file, "a") as kept:
        kept.write('["half a li')
    monkeypatch.setattr(lengths_file, "read_shape", None)
    assert dataset(config, most=100)[1] == lengths, "no video is opened twice"


def test_a_video_that_changed_is_measured_again(config, mixed, tmp_path):
    place = tmp_path / "copy"
    place.mkdir()
    for file in mixed.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    there = {"data.videos": str(place), "data.cache_dir": str(tmp_path / "cache")}
    before = dataset(config(**there), most=200)[1]
    write_video(place / "0.mp4", (np.full((84, 84, 3), f, np.uint8) for f in range(9)), 2.0)
    after = dataset(config(**there), most=200)[1]
    assert after[0] > before[0] and after[1:] == before[1:]


def test_a_sample_over_the_budget_is_refused_by_name_or_skipped(config, caplog):
    over = r"sample row-\d+: \d+ tokens \(8 frames of 56x\d+\) are more than training\.tokens_per_batch=50; raise it"
    with pytest.raises(BadSampleError, match=over):
        dataset(config(), most=50)
    with pytest.raises(BadSampleError, match=r"are more than data\.max_tokens=50; raise it"):
        dataset(config(**{"data.max_tokens": 50}), most=100)
    skip = config(**{"data.on_bad_sample": "skip"})
    found, lengths = dataset(skip, most=50)
    assert max(lengths) <= 50 and 9 < len(found) == len(lengths) < 18
    assert found.skipped() == {"more than training.tokens_per_batch tokens": 18 - len(found)}
    assert "skipped (data.on_bad_sample=skip), others are only counted: sample row-" in caplog.text
    with pytest.raises(NsaLabError, match="of 18 samples are bad"):
        dataset(skip, most=36)


@pytest.mark.filterwarnings("ignore")
def test_samples_left_out_are_counted_once_over_all_processes(config):
    skip = config(**{"data.on_bad_sample": "skip", "training.tokens_per_batch": 50})
    counts = [build_data(skip, Ranks(rank, 2), training=True)[0].skipped() for rank in (0, 1)]
    assert counts == [{"data/skipped/train": 4.0}, {}]


def test_a_bad_sample_leaves_its_batch_to_the_others(config):
    found, _ = dataset(config(**{"data.on_bad_sample": "skip"}), most=100)
    broken, intact = found.example, [found[3], found[4]]

    def example(sample):
        if sample.id in ("row-2", "row-5"):
            raise BadSampleError("damaged")
        return broken(sample)

    found.example = example
    found.left_out = {"unreadable video": 3}
    sizes = [[len(e.input_ids) for e in batch] for batch in (found.usable([2, 3, 4]), found.usable([2]))]
    assert sizes == [[len(e.input_ids) for e in intact], [len(intact[0].input_ids)]]
    assert found.skipped() == {"unreadable video": 4}, "one of its own, and those that were left out before"


def test_a_budget_that_holds_no_clip_is_refused_at_once(tiny):
    with pytest.raises(ConfigError, match=r"holds no clip of tasks\.needle, which has \d+ video tokens besides its"):
        tiny({"training.tokens_per_batch": 8})
    with pytest.raises(ConfigError, match="0 is not positive; leave it null for batch_size samples"):
        tiny({"training.tokens_per_batch": 0})


@pytest.mark.filterwarnings("ignore")
def test_a_filled_batch_is_the_sum_of_its_samples(config):
    module, data = build(config())
    batch = next(b for b in map(data.filled.batch, range(9)) if len(b) > 2)
    examples = [data.train[index] for index in batch]

    def summed(batches):
        module.zero_grad()
        found = 0.0
        for packed in batches:
            score = score_answers(module.model, packed)
            (score.loss * score.tokens).backward()
            found += score.loss.item() * score.tokens
        return found, {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}

    together, gradients = summed([pack(examples)])
    alone, expected = summed([pack([example]) for example in examples])
    assert together == pytest.approx(alone, rel=1e-5)
    assert gradients.keys() == expected.keys() and len(gradients) > 20
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.filterwarnings("ignore")
def test_a_run_says_how_full_its_batches_are_and_goes_on_where_it_was_cut(config, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    alone = run(config(), directory=tmp_path / "alone", progress_bar=False)
    batches = 2 * alone.metrics["data/steps_per_epoch"]
    assert (
        0.7 < alone.metrics["data/fill"] <= 1 and f"18 samples fill {batches:.0f} batches of up to 150" in caplog.text
    )

    def stop(progress):
        if progress.step == 3:
            raise KeyboardInterrupt

    often = {"training.checkpoint_every": 1}
    with pytest.raises(KeyboardInterrupt):
        run(config(**often), directory=tmp_path / "cut", progress_bar=False, on_progress=stop)
    cut = run(config(**often), directory=tmp_path / "cut", progress_bar=False)
    a, b = (read_series(place.directory / "metrics.jsonl") for place in (alone, cut))
    assert a["train/loss"] == b["train/loss"] and a["gradient_norm"] == b["gradient_norm"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_processes_take_the_steps_of_one(config, tmp_path):
    alone = run(config(), directory=tmp_path / "one", progress_bar=False)
    both = run(config(**{"training.devices": 2}), directory=tmp_path / "two", progress_bar=False)
    a, b = (read_series(place.directory / "metrics.jsonl") for place in (alone, both))
    for name in ("train/loss", "gradient_norm", "val/loss"):
        assert b[name] == pytest.approx(a[name], rel=1e-5), name


def test_a_step_whose_batches_do_not_divide_is_refused(config):
    with pytest.raises(NsaLabError, match=r"training\.accumulate=3 of up to 150 tokens, do not divide over 2 proc"):
        Ranks(0, 2).share(config(**{"training.accumulate": 3}).training)
    share = Ranks(1, 2).share(config().training)
    assert (share.batch_size, share.accumulate) == (2, 1)
