import itertools
from collections import Counter, defaultdict

import numpy as np
import pytest

from nsa_lab.config import rules
from nsa_lab.config.schema import NeedleConfig, OrderConfig
from nsa_lab.tasks import TASKS
from nsa_lab.tasks.base import Record, free_starts
from nsa_lab.tasks.needle import NeedleTask
from nsa_lab.tasks.order import OrderTask
from nsa_lab.tasks.scene import CENTRES, RGB
from nsa_lab.tasks.words import COLOURS, PLACES


def scripts(task, config, count):
    return [task.script(config, index, np.random.default_rng([0, index])) for index in range(count)]


def test_names_agree():
    assert tuple(RGB) == COLOURS
    assert tuple(CENTRES) == PLACES
    assert len(COLOURS) == rules.COLOURS
    assert all(name == task.name for name, task in TASKS.items())


def test_needle_attributes_are_balanced_and_independent():
    made = scripts(NeedleTask, NeedleConfig(questions=2), 512)
    pairs = Counter((script.events[0].colour, script.events[0].place) for script in made)
    assert len(pairs) == 32
    assert set(pairs.values()) == {16}
    for script in made:
        assert dict(script.turns) == {
            "What colour was the flash?": script.events[0].colour,
            "Where was the flash?": script.events[0].place,
        }
    starts = np.array([script.events[0].start for script in made])
    assert (starts % 2 == 0).all()
    assert 24 < starts.mean() < 38
    assert starts.min() <= 4 and starts.max() >= 58


def test_one_needle_question_asks_for_the_colour():
    made = scripts(NeedleTask, NeedleConfig(), 64)
    assert {script.turns for script in made} == {
        (("What colour was the flash?", script.events[0].colour),) for script in made
    }
    assert NeedleTask.chance(NeedleConfig(questions=2)) == 0.1875


def test_order_answers_are_true_and_pairs_disjoint():
    for script in scripts(OrderTask, OrderConfig(events=5), 200):
        times = {event.colour: event.start for event in script.events}
        assert len(times) == 5
        asked = []
        for question, answer in script.turns:
            named = question.removeprefix("Which came first, ").removesuffix("?").split(" or ")
            assert answer == min(named, key=times.__getitem__)
            asked += named
        assert len(asked) == len(set(asked)) == 4


def test_order_gives_nothing_away_blind():
    made = scripts(OrderTask, OrderConfig(), 4096)
    positions, colours = Counter(), defaultdict(Counter)
    for script in made:
        answers = []
        for question, answer in script.turns:
            named = question.removeprefix("Which came first, ").removesuffix("?").split(" or ")
            answers.append(named.index(answer))
            for colour in named:
                colours[colour][colour == answer] += 1
        positions[tuple(answers)] += 1
    assert set(positions.values()) == {1024}, "every pair of positions equally often"
    for colour, counts in colours.items():
        assert 0.45 < counts[True] / counts.total() < 0.55, colour


@pytest.mark.parametrize(("frames", "length", "events"), [(64, 4, 4), (16, 4, 4), (12, 3, 3), (8, 1, 4), (2, 2, 1)])
def test_events_fit_and_do_not_overlap(frames, length, events):
    for seed in range(50):
        starts = free_starts(frames, length, events, np.random.default_rng(seed))
        assert len(starts) == events
        assert all(start % 2 == 0 for start in starts)
        assert starts[0] >= 0 and starts[-1] + length <= frames
        assert all(later - earlier >= length for earlier, later in itertools.pairwise(starts))


@pytest.mark.parametrize(("name", "chance"), [("needle", 0.125), ("order", 0.5)])
def test_describe(name, chance, monkeypatch):
    task = TASKS[name]
    assert task.chance(task.config_class()) == chance
    assert f"chance {chance:.1%}" in task.describe()
    assert all(isinstance(record, Record) for record in task.records())
    record = Record("64 frames", "nano", 300, 3, dense=0.98, blind=0.19, commit="abc1234")
    monkeypatch.setattr(task, "records", lambda: [record])
    assert "64 frames: dense 98.0%, blind 19.0% (nano, 300 steps, 3 seeds, commit abc1234)" in task.describe()
