"""What every task must hold to: parametrised over TASKS, so that a new one is tested by its line."""

from collections import Counter

import numpy as np
import pytest

from nsa_lab.tasks import TASKS, TasksConfig
from nsa_lab.tasks.base import records

every_task = pytest.mark.parametrize("name", TASKS)


def scripts(name, count):
    task = TASKS[name]
    return [task.script(task.Config(), index, np.random.default_rng([1, index])) for index in range(count)]


@every_task
def test_the_defaults_break_no_rule_and_are_off(name):
    task = TASKS[name]
    assert list(task.problems(task.Config(), TasksConfig())) == []
    assert not task.Config().enabled
    assert task.video_tokens(task.Config()) > 0


@every_task
def test_what_happens_lies_inside_the_clip(name):
    frames = TASKS[name].Config().frames
    for script in scripts(name, 200):
        for part in (*script.events, *script.scenes):
            assert part.start >= 0 and part.start % 2 == 0 and part.frames > 0 and part.start + part.frames <= frames
        assert script.turns and all(question and answer for question, answer in script.turns)


@every_task
def test_scripts_follow_from_index_and_seed(name):
    assert scripts(name, 5) == scripts(name, 5)


@every_task
def test_no_answer_is_more_common_than_chance_says(name):
    """A blind guesser who always names the most common answer to a question is right as often as `chance` says."""
    task, asked = TASKS[name], Counter()
    for script in scripts(name, 512):
        asked.update(script.turns)
    questions = Counter()
    for (question, _), count in asked.items():
        questions[question] += count
    best = {question: max(n for (q, _), n in asked.items() if q == question) for question in questions}
    share = sum(best.values()) / sum(questions.values())
    chance = task.chance(task.Config())
    assert 0 < chance < 1
    # Few clips per question leave some room above.
    assert chance - 0.02 <= share <= chance + 0.3


@every_task
def test_it_describes_itself(name):
    said = TASKS[name].describe(name)
    assert said.startswith(f"{name}: ") and "chance" in said
    assert all(0 <= record.blind <= record.dense <= 1 for record in records(name))
