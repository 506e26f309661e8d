"""Needle: one short flash somewhere in a long clip; what colour was it, and where?"""

import numpy as np

from nsa_lab.config.schema import NeedleConfig
from nsa_lab.tasks.base import Event, Script, Task, free_starts
from nsa_lab.tasks.words import COLOURS, PLACES


class NeedleTask(Task):
    name = "needle"
    summary = "a rare event somewhere in a long clip: its colour (of 8) and its place (of 4)"
    chance = (1 / len(COLOURS) + 1 / len(PLACES)) / 2

    @staticmethod
    def script(config: NeedleConfig, index: int, rng: np.random.Generator) -> Script:
        # Every colour meets every place equally often: 32 clips in a row hold each pair once.
        pair, rest = index % (len(COLOURS) * len(PLACES)), index // (len(COLOURS) * len(PLACES))
        colour, place = COLOURS[pair % len(COLOURS)], PLACES[pair // len(COLOURS)]
        start = free_starts(config.frames, config.event_frames, 1, rng)[0]
        turns = [("What colour was the flash?", colour), ("Where was the flash?", place)]
        if rest % 2:
            turns.reverse()
        return Script((Event(colour, place, start, config.event_frames),), tuple(turns[: config.questions]))
