import itertools
from collections import Counter, defaultdict

import numpy as np
import pytest

from nsa_lab.tasks import TASKS
from nsa_lab.tasks.base import Record, free_starts, records
from nsa_lab.tasks.duration import Duration
from nsa_lab.tasks.needle import Needle
from nsa_lab.tasks.order import Order
from nsa_lab.tasks.recall import Recall
from nsa_lab.tasks.scene import CENTRES, RGB
from nsa_lab.tasks.words import COLOURS, PLACES


def scripts(task, config, count):
    return [task.script(config, index, np.random.default_rng([0, index])) for index in range(count)]


def test_names_agree():
    assert tuple(RGB) == (*COLOURS, "white")
    assert tuple(CENTRES) == PLACES


def test_needle_attributes_are_balanced_and_independent():
    made = scripts(Needle, Needle.Config(questions=2), 512)
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
    made = scripts(Needle, Needle.Config(), 64)
    assert {script.turns for script in made} == {
        (("What colour was the flash?", script.events[0].colour),) for script in made
    }
    assert Needle.chance(Needle.Config(questions=2)) == 0.1875


def test_order_answers_are_true_and_pairs_disjoint():
    for script in scripts(Order, Order.Config(events=5), 200):
        times = {event.colour: event.start for event in script.events}
        assert len(times) == 5
        asked = []
        for question, answer in script.turns:
            named = question.removeprefix("Which came first, ").removesuffix("?").split(" or ")
            assert answer == min(named, key=times.__getitem__)
            asked += named
        assert len(asked) == len(set(asked)) == 4


def test_order_gives_nothing_away_blind():
    made = scripts(Order, Order.Config(), 4096)
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


@pytest.mark.parametrize(
    ("name", "chance"), [("needle", 0.125), ("order", 0.5), ("recall", 0.125), ("duration", 0.125)]
)
def test_describe(name, chance, monkeypatch):
    task = TASKS[name]
    assert task.chance(task.Config()) == chance
    assert f"chance {chance:.1%}" in task.describe(name)
    assert all(isinstance(record, Record) for record in records(name))
    record = Record("64 frames", "nano", 300, 3, dense=0.98, blind=0.19, commit="abc1234")
    monkeypatch.setattr("nsa_lab.tasks.base.records", lambda name: [record])
    assert "64 frames: dense 98.0%, blind 19.0% (nano, 300 steps, 3 seeds, commit abc1234)" in task.describe(name)


@pytest.mark.parametrize(
    ("task", "config"),
    [
        (Recall, Recall.Config()),
        (Recall, Recall.Config(frames=64, scenes=6, shortest_frames=4, event_frames=4)),
        (Recall, Recall.Config(frames=64, scenes=8)),
        (Duration, Duration.Config()),
        (Duration, Duration.Config(frames=64, scenes=2, lead_frames=10, closing_frames=4)),
    ],
)
def test_scenes_fill_the_clip_and_differ_in_length(task, config):
    lengths = []
    for script in scripts(task, config, 400):
        assert len(script.scenes) == config.scenes == len({scene.colour for scene in script.scenes})
        starts = [scene.start for scene in script.scenes]
        ends = [scene.start + scene.frames for scene in script.scenes]
        assert starts == [0, *ends[:-1]] and ends[-1] == config.frames - config.closing_frames
        assert all(scene.frames % 2 == 0 and scene.frames >= config.shortest_frames for scene in script.scenes)
        lengths += [scene.frames for scene in script.scenes]
    assert min(lengths) == config.shortest_frames
    assert max(lengths) > 4 * np.median(lengths) or config.scenes == 2


def test_recall_asks_for_the_scene_of_the_flash():
    config, answers, lengths = Recall.Config(), Counter(), Counter()
    for script in scripts(Recall, config, 512):
        (flash,), ((question, answer),) = script.events, script.turns
        (scene,) = [s for s in script.scenes if s.start <= flash.start < s.start + s.frames]
        assert flash.start + flash.frames <= scene.start + scene.frames
        assert question == "What colour was it when the flash came?" and answer == scene.colour
        answers[answer] += 1
        lengths[flash.frames] += 1
    assert set(answers.values()) == {64}
    assert min(lengths) == config.event_frames and max(lengths) > 12
    assert all(length % 2 == 0 for length in lengths)


def test_duration_asks_for_the_scene_that_leads():
    config, answers, places = Duration.Config(lead_frames=6), Counter(), Counter()
    for script in scripts(Duration, config, 512):
        ((question, answer),) = script.turns
        ranked = sorted(script.scenes, key=lambda scene: -scene.frames)
        assert question == "Which colour was longest?" and answer == ranked[0].colour
        assert ranked[0].frames - ranked[1].frames >= 6
        answers[answer] += 1
        places[script.scenes.index(ranked[0])] += 1
    assert set(answers.values()) == {64} and set(places.values()) == {128}
