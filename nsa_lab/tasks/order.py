"""Order: several flashes of different colours; of two of them, which came first?"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nsa_lab.errors import Problem
from nsa_lab.tasks.base import Event, Script, free_starts
from nsa_lab.tasks.events import EventsTask
from nsa_lab.tasks.words import COLOURS, PLACES


class Order(EventsTask):
    @dataclass
    class Config(EventsTask.Config):
        """Which of two events came first. `events` flashes of distinct colours, one question per disjoint pair."""

        events: int = 4
        event_frames: int = 4
        questions: int = 2

    summary = "flashes of different colours at different times: which of two came first"
    stands_for = "Tomato"
    counts = (*EventsTask.counts, "event_frames", "questions")

    @classmethod
    def problems(cls, config: Config, design: object) -> Iterator[Problem]:
        yield from super().problems(config, design)
        events, pairs = config.events, config.questions
        if not 2 <= events <= len(COLOURS):
            yield Problem("events", f"{events} events; use 2 to {len(COLOURS)}, one colour each")
        elif 2 * pairs > events:
            yield Problem("questions", f"{pairs} questions need {2 * pairs} events, of which there are {events}")
        yield from cls.crowded(config, events)

    @staticmethod
    def chance(config: Config) -> float:
        return 1 / 2

    @staticmethod
    def script(config: Config, index: int, rng: np.random.Generator) -> Script:
        colours = [str(colour) for colour in rng.permutation(COLOURS)[: config.events]]
        starts = free_starts(config.frames - config.closing_frames, config.event_frames, config.events, rng)
        events = tuple(
            Event(colour, str(rng.choice(PLACES)), start, config.event_frames)
            for colour, start in zip(colours, starts, strict=True)
        )
        chosen = rng.permutation(config.events)
        turns = []
        for number in range(config.questions):
            first, later = (colours[at] for at in sorted(chosen[2 * number : 2 * number + 2]))
            # One bit of the index per question: the answer is named first equally often, whatever the others' answers.
            named = (first, later) if index >> number & 1 else (later, first)
            turns.append((f"Which came first, {named[0]} or {named[1]}?", first))
        return Script(events, tuple(turns))
