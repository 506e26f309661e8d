"""Needle: one short flash somewhere in a long clip; what colour was it, and where?"""

import numpy as np

from nsa_lab.config.schema import NeedleConfig
from nsa_lab.tasks.base import Event, Script, Task, free_starts
from nsa_lab.tasks.words import COLOURS, PLACES


class NeedleTask(Task):
    """The first question asks for the colour, the second, which needs a sense of place inside the frame, for where."""

    name = "needle"
    summary = "a rare event somewhere in a long clip: its colour (of 8) and, with two questions, its place (of 4)"
    config_class = NeedleConfig

    @staticmethod
    def chance(config: NeedleConfig) -> float:
        shares = (1 / len(COLOURS), 1 / len(PLACES))[: config.questions]
        return sum(shares) / len(shares)

    @staticmethod
    def script(config: NeedleConfig, index: int, rng: np.random.Generator) -> Script:
        # Every colour meets every place equally often: 32 clips in a row hold each pair once.
        pair = index % (len(COLOURS) * len(PLACES))
        colour, place = COLOURS[pair % len(COLOURS)], PLACES[pair // len(COLOURS)]
        start = free_starts(config.frames, config.event_frames, 1, rng)[0]
        turns = (("What colour was the flash?", colour), ("Where was the flash?", place))
        return Script((Event(colour, place, start, config.event_frames),), turns[: config.questions])
