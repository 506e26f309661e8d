"""Needle: one short flash somewhere in a long clip; what colour was it, and where?"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nsa_lab.errors import Problem
from nsa_lab.tasks.base import Event, Script, free_starts
from nsa_lab.tasks.events import EventsTask
from nsa_lab.tasks.words import COLOURS, PLACES


class Needle(EventsTask):
    """The first question asks for the colour, the second, which needs a sense of place inside the frame, for where."""

    @dataclass
    class Config(EventsTask.Config):
        """A rare event of `event_frames` frames somewhere in a long clip."""

        event_frames: int = 2
        questions: int = 1

    summary = "a rare event somewhere in a long clip: its colour (of 8) and, with two questions, its place (of 4)"
    stands_for = "TimeScope"
    counts = (*EventsTask.counts, "event_frames", "questions")

    @classmethod
    def problems(cls, config: Config, design: object) -> Iterator[Problem]:
        yield from super().problems(config, design)
        yield from cls.crowded(config, 1)
        if config.questions > 2:
            yield Problem("questions", f"{config.questions} is more than 2: colour and place")

    @staticmethod
    def chance(config: Config) -> float:
        shares = (1 / len(COLOURS), 1 / len(PLACES))[: config.questions]
        return sum(shares) / len(shares)

    @staticmethod
    def script(config: Config, index: int, rng: np.random.Generator) -> Script:
        # Every colour meets every place equally often: 32 clips in a row hold each pair once.
        pair = index % (len(COLOURS) * len(PLACES))
        colour, place = COLOURS[pair % len(COLOURS)], PLACES[pair // len(COLOURS)]
        start = free_starts(config.frames - config.closing_frames, config.event_frames, 1, rng)[0]
        turns = (("What colour was the flash?", colour), ("Where was the flash?", place))
        return Script((Event(colour, place, start, config.event_frames),), turns[: config.questions])
