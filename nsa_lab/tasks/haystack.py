"""Haystack: several discs flash in a clip, one of them a ring; what colour was the ring?"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nsa_lab.errors import Problem
from nsa_lab.tasks.base import Event, Script, colours_with, free_starts
from nsa_lab.tasks.events import Skill
from nsa_lab.tasks.words import COLOURS, PLACES


class Haystack(Skill):
    @dataclass
    class Config(Skill.Config):
        """A needle among `decoys` needles of other colours, which lack its white core."""

        decoys: int = 3

    summary = "several flashes of different colours, one of them a ring: its colour (of 8)"
    stands_for = "LongTimeScope"

    @classmethod
    def problems(cls, config: Config, design: object) -> Iterator[Problem]:
        yield from super().problems(config, design)
        if not 0 <= config.decoys < len(COLOURS):
            yield Problem("decoys", f"{config.decoys} decoys; use 0 to {len(COLOURS) - 1}, one colour each")
        yield from cls.crowded(config, config.decoys + 1)

    @staticmethod
    def chance(config: Config) -> float:
        return 1 / len(COLOURS)

    @staticmethod
    def script(config: Config, index: int, rng: np.random.Generator) -> Script:
        # The ring goes through all colours, and through all places in the order of time.
        count = config.decoys + 1
        answer, asked = COLOURS[index % len(COLOURS)], index // len(COLOURS) % count
        starts = free_starts(config.frames - config.closing_frames, config.event_frames, count, rng)
        colours = colours_with(answer, asked, count, rng)
        events = tuple(
            Event(colour, str(rng.choice(PLACES)), start, config.event_frames, ring=number == asked)
            for number, (colour, start) in enumerate(zip(colours, starts, strict=True))
        )
        return Script(events, (("What colour was the ring?", answer),))
