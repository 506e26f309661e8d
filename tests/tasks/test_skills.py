"""The skills' answers, read off the pixels by eyes that know nothing of the script; balance; chance."""

import dataclasses
import itertools
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from nsa_lab.config import load_config
from nsa_lab.config.rules import clip_tokens
from nsa_lab.tasks import TASKS, TasksConfig, task_settings
from nsa_lab.tasks.clips import clip_folder
from nsa_lab.tasks.count import Count
from nsa_lab.tasks.direction import Direction
from nsa_lab.tasks.gist import Gist
from nsa_lab.tasks.haystack import Haystack
from nsa_lab.tasks.pointer import DEPTHS, Pointer
from nsa_lab.tasks.scene import CENTRES, RGB, render
from nsa_lab.tasks.words import NUMBERS

SUITE = Path(__file__).resolve().parents[2] / "experiments/tasks"
SIDE = 56
NAMES = list(RGB)
PALETTE = np.array([RGB[name] for name in NAMES], float)


def look(frame, apart):
    """The tint of a frame (None: grey), and by place the colour of a disc there and whether its core is white."""
    background = frame[26:30, 26:30].mean((0, 1))
    tint = None
    if np.ptp(background) > 70:
        rest = background - 0.6 * PALETTE[:8]  # 0.4 of a grey, under the right tint
        tint = NAMES[np.linalg.norm(rest - rest.mean(1, keepdims=True), axis=1).argmin()]
    discs = {}
    for place, (down, across) in CENTRES.items():
        y, x = (int((0.5 + 2 * apart * (share - 0.5)) * SIDE) for share in (down, across))
        core, rim = frame[y, x].astype(float), frame[y, x + (9 if across > 0.5 else -9)].astype(float)
        distances = np.linalg.norm(PALETTE - rim, axis=1)
        if distances.min() < 8:
            colour = NAMES[distances.argmin()]
            discs[place] = (colour, colour != "white" and core.min() > 247)
    return tint, discs


def watch(config, script, index):
    """What each temporal patch shows; both of its frames must show the same."""
    frames = list(
        render(
            config.frames,
            SIDE,
            SIDE,
            events=script.events,
            scenes=script.scenes,
            distractors=0,
            noise=0.0,
            rng=np.random.default_rng([7, index]),
        )
    )
    seen = [look(frame, getattr(config, "apart", 0.5)) for frame in frames]
    assert seen[::2] == seen[1::2], "no movement and no cut inside a temporal patch"
    assert all(tint is None and not discs for tint, discs in seen[config.frames - config.closing_frames :])
    return seen[::2]


def haystack(seen, questions):
    return [{colour for _, discs in seen for colour, ring in discs.values() if ring}.pop()]


def direction(seen, questions):
    (first,), (last,) = (seen[0][1], [discs for _, discs in seen if discs][-1])
    (up, left), (down, right) = CENTRES[first], CENTRES[last]
    assert (up == down) != (left == right)
    return [("down" if down > up else "up") if left == right else ("right" if right > left else "left")]


def count(seen, questions):
    lit = [next(iter(discs), None) for _, discs in seen]
    flashes = [place for place, _ in itertools.groupby(lit) if place]
    (main, most), *_ = Counter(flashes).most_common()
    assert 2 * most > len(flashes)
    return [NUMBERS[len(flashes) - 1], main]


def gist(seen, questions):
    (first, most), (_, second), *_ = Counter(tint for tint, _ in seen if tint).most_common()
    assert most >= second + Gist.Config().lead_frames // 2
    return [first]


def pointer(seen, questions):
    names = {tint: next(iter(discs.values()))[0] for tint, discs in seen if tint}
    here = [tint for tint, _ in seen if tint][-1]
    way = [here]
    for _ in range(DEPTHS.index(questions[0].removesuffix("?").split()[-1])):
        here = names[here]
        way.append(here)
    assert len(set(way)) == len(way) and names[here] not in way
    return [names[here]]


SKILLS = [
    (Haystack, Haystack.Config(), haystack),
    (Haystack, Haystack.Config(frames=64, decoys=7, event_frames=2), haystack),
    (Direction, Direction.Config(), direction),
    (Count, Count.Config(), count),
    (Gist, Gist.Config(), gist),
    (Pointer, Pointer.Config(), pointer),
    (Pointer, Pointer.Config(frames=60, scenes=6, hops=4, least_hops=0), pointer),
]


def scripts(task, config, total):
    return [task.script(config, index, np.random.default_rng([3, index])) for index in range(total)]


@pytest.mark.parametrize(("task", "config", "answer"), SKILLS)
def test_the_answer_is_in_the_pixels(task, config, answer):
    assert list(task.problems(config, TasksConfig())) == []
    for index, script in enumerate(scripts(task, config, 16)):
        questions, answers = zip(*script.turns, strict=True)
        assert answer(watch(config, script, index), questions) == list(answers)


@pytest.mark.parametrize(("task", "config", "answer"), SKILLS)
def test_a_question_tells_nothing_of_its_answer(task, config, answer):
    """Over a whole period of the index every answer to a question is equally common, and chance is what follows."""
    asked = defaultdict(Counter)
    for script in scripts(task, config, 960):
        for question, reply in script.turns:
            asked[question][reply] += 1
    shares = []
    for replies in asked.values():
        assert len(set(replies.values())) == 1
        shares.append((replies.total(), 1 / len(replies)))
    total = sum(weight for weight, _ in shares)
    assert sum(weight * share for weight, share in shares) / total == pytest.approx(task.chance(config))


def test_the_ring_and_the_asked_moment_give_nothing_away():
    config = Haystack.Config()
    places, times = Counter(), Counter()
    for script in scripts(Haystack, config, 960):
        (ring,) = [event for event in script.events if event.ring]
        times[script.events.index(ring)] += 1
        places[ring.place] += 1
        assert len({event.colour for event in script.events}) == config.decoys + 1
    assert set(times.values()) == {240} and min(places.values()) > 200


@pytest.mark.parametrize("task", [Direction, Count])
def test_a_place_is_told_by_the_pixels_of_its_own_token(task):
    """A disc in the middle of its token looks alike at every place; these two ask for the place."""
    config, half = task.Config(), SIDE // 2
    tokens = {}
    for script in scripts(task, config, 64):
        (event, *_), seed = script.events, np.random.default_rng(5)
        (frame,) = render(
            1, SIDE, SIDE, events=[dataclasses.replace(event, start=0)], distractors=0, noise=0.0, rng=seed
        )
        down, across = (int(2 * share) * half for share in CENTRES[event.place])
        tokens[event.place] = frame[down : down + half, across : across + half].astype(float)
    assert len(tokens) == 4
    assert all(np.abs(a - b).mean() > 40 for a, b in itertools.combinations(tokens.values(), 2))


def test_count_has_every_number_at_every_place():
    pairs = Counter(tuple(answer for _, answer in script.turns) for script in scripts(Count, Count.Config(), 160))
    assert len(pairs) == 16 and set(pairs.values()) == {10}
    assert Count.chance(Count.Config(most=5)) == pytest.approx((1 / 5 + 1 / 4) / 2)


def test_pointer_names_colours_of_the_clip_alone_and_depths_are_equally_common():
    config, depths, last = Pointer.Config(scenes=6, hops=3, least_hops=1, frames=60), Counter(), Counter()
    for script in scripts(Pointer, config, 480):
        tints = {scene.colour for scene in script.scenes}
        assert all(event.colour in tints for event in script.events) and len(tints) == 6
        ((question, answer),) = script.turns
        depths[question] += 1
        last[answer == script.scenes[0].colour] += 1
    assert sorted(depths) == [f"What colour came after {n}?" for n in ("one", "three", "two")]
    assert set(depths.values()) == {160}
    assert 50 < last[True] < 150, "the answer's scene is in no place of its own"


@pytest.mark.parametrize(("frames", "tokens"), [(32, 64), (4096, 8192)])
def test_the_suite_reaches_from_64_tokens_to_8192_by_one_dial(frames, tokens):
    for name in ("suite", "suite_dense_text"):
        config = load_config(SUITE / f"{name}.yaml", [f"tasks.frames={frames}"])
        assert set(clip_tokens(config).values()) == {tokens} and len(clip_tokens(config)) >= 6
        assert frames <= config.data.max_frames


def test_one_dial_sets_the_length_of_every_task(tmp_path):
    tasks = TasksConfig(frames=200)
    for name in TASKS:
        own = dataclasses.replace(getattr(tasks, name), frames=200)
        assert task_settings(tasks, name) == own
        assert TASKS[name].video_tokens(task_settings(tasks, name)) == 400
        by_task = dataclasses.replace(TasksConfig(), **{name: own})
        assert clip_folder(name, tasks, tmp_path) == clip_folder(name, by_task, tmp_path)
        assert clip_folder(name, TasksConfig(), tmp_path) != clip_folder(name, tasks, tmp_path)


@pytest.mark.parametrize(
    ("fps", "most", "side", "tokens"),
    [(8.0, 768, 56, 144), (3.5556, 768, 84, 144), (2.0, 768, 112, 144), (8.0, 9, 56, 20)],
)
def test_tokens_are_those_of_the_frames_that_are_shown(fps, most, side, tokens):
    sides = [f"tasks.recall.{name}={side}" for name in ("width", "height")]
    sampled = [f"data.fps={fps}", f"data.max_frames={most}", "tasks.recall.frames=72"]
    assert clip_tokens(load_config(SUITE.parent / "demo.yaml", [*sampled, *sides])) == {"recall": tokens}
