"""Count: a white disc flashes several times; how many times, and where most of them?"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nsa_lab.errors import Problem
from nsa_lab.layout import FRAMES_PER_PATCH
from nsa_lab.tasks.base import Event, Script, free_starts
from nsa_lab.tasks.events import PlacesSkill
from nsa_lab.tasks.words import NUMBERS, PLACES


class Count(PlacesSkill):
    """More than half of the flashes are at one place, the second question's answer; between two it is dark."""

    @dataclass
    class Config(PlacesSkill.Config):
        """One flash up to `most`; with one question, how many alone."""

        event_frames: int = 6
        most: int = 4
        questions: int = 2

    summary = "flashes of a white disc: how many (of 4) and, with two questions, where most of them (of 4)"
    stands_for = "VSIBench"
    counts = (*PlacesSkill.counts, "questions")

    @classmethod
    def problems(cls, config: Config, design: object) -> Iterator[Problem]:
        yield from super().problems(config, design)
        if config.questions > 2:
            yield Problem("questions", f"{config.questions} is more than 2: how many and where")
        if not 2 <= config.most <= len(NUMBERS):
            yield Problem("most", f"{config.most} flashes; use 2 to {len(NUMBERS)}")
        yield from cls.crowded(config, config.most, gap=FRAMES_PER_PATCH)

    @staticmethod
    def chance(config: Config) -> float:
        shares = (1 / config.most, 1 / len(PLACES))[: config.questions]
        return sum(shares) / len(shares)

    @staticmethod
    def script(config: Config, index: int, rng: np.random.Generator) -> Script:
        # Every number meets every place equally often.
        flashes, main = index % config.most + 1, PLACES[index // config.most % len(PLACES)]
        others = [place for place in PLACES if place != main]
        places = [main] * (flashes // 2 + 1) + [str(rng.choice(others)) for _ in range((flashes - 1) // 2)]
        span = config.event_frames + FRAMES_PER_PATCH
        starts = free_starts(config.frames - config.closing_frames, span, flashes, rng)
        events = tuple(
            Event("white", str(place), start, config.event_frames, apart=config.apart)
            for place, start in zip(rng.permutation(places), starts, strict=True)
        )
        turns = (("How many?", NUMBERS[flashes - 1]), ("Where was it most?", main))
        return Script(events, turns[: config.questions])
