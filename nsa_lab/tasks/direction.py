"""Direction: a white disc stands at one place and then at the one beside it; which way did it go?"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nsa_lab.errors import Problem
from nsa_lab.layout import FRAMES_PER_PATCH
from nsa_lab.tasks.base import Event, Script
from nsa_lab.tasks.events import PlacesSkill

LANES = {
    "up": (("southwest", "northwest"), ("southeast", "northeast")),
    "down": (("northwest", "southwest"), ("northeast", "southeast")),
    "left": (("northeast", "northwest"), ("southeast", "southwest")),
    "right": (("northwest", "northeast"), ("southwest", "southeast")),
}
"""The places that a disc leaves and reaches: two ways for each direction."""


class Direction(PlacesSkill):
    """No frame shows two places, and no temporal patch a movement: the answer lies between the frames alone."""

    @dataclass
    class Config(PlacesSkill.Config):
        """The disc stands at either place for `event_frames` frames or more, up to the grey end."""

        event_frames: int = 8

    summary = "a disc at one place and then at the one beside it: which way it went (of 4)"
    stands_for = "Tomato"

    @classmethod
    def problems(cls, config: Config, design: object) -> Iterator[Problem]:
        yield from super().problems(config, design)
        yield from cls.crowded(config, 2)

    @staticmethod
    def chance(config: Config) -> float:
        return 1 / len(LANES)

    @staticmethod
    def script(config: Config, index: int, rng: np.random.Generator) -> Script:
        answer = tuple(LANES)[index % len(LANES)]
        lane = LANES[answer][index // len(LANES) % 2]
        end, least = config.frames - config.closing_frames, -(-config.event_frames // FRAMES_PER_PATCH)
        move = FRAMES_PER_PATCH * int(rng.integers(least, end // FRAMES_PER_PATCH - least + 1))
        stays = zip(lane, (0, move), (move, end - move), strict=True)
        events = tuple(Event("white", place, start, frames, apart=config.apart) for place, start, frames in stays)
        return Script(events, (("Which way?", answer),))
