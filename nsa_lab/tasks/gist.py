"""Gist: scenes of a few colours, each of which comes several times; which colour was there most of all?"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from nsa_lab.tasks.base import Script, colours_with, scenes_in_turn, uneven_lengths
from nsa_lab.tasks.scenes import ScenesTask
from nsa_lab.tasks.words import COLOURS


class Gist(ScenesTask):
    @dataclass
    class Config(ScenesTask.Config):
        """`scenes` colours, each cut into `visits` scenes; one lasts `lead_frames` longer than any other in all."""

        scenes: int = 3
        visits: int = 2
        lead_frames: int = 8

    summary = "scenes of a few colours that come again and again: which colour (of 8) lasted longest in all"
    stands_for = "MLVU"
    counts = (*ScenesTask.counts, "visits")
    spans = (*ScenesTask.spans, "lead_frames")

    @staticmethod
    def frames_needed(config: Any) -> int:
        return int(config.scenes * config.visits * config.shortest_frames + config.lead_frames + config.closing_frames)

    @staticmethod
    def chance(config: Config) -> float:
        return 1 / len(COLOURS)

    @staticmethod
    def script(config: Config, index: int, rng: np.random.Generator) -> Script:
        answer = COLOURS[index % len(COLOURS)]
        frames = config.frames - config.closing_frames
        other = (frames - config.lead_frames) // (2 * config.scenes) * 2
        colours = colours_with(answer, 0, config.scenes, rng)
        totals = [frames - other * (config.scenes - 1), *[other] * (config.scenes - 1)]
        pieces = [
            (colour, length)
            for colour, total in zip(colours, totals, strict=True)
            for length in uneven_lengths(total, config.visits, config.shortest_frames, rng)
        ]
        shuffled = [pieces[place] for place in rng.permutation(len(pieces))]
        merged: list[tuple[str, int]] = []
        for colour, length in shuffled:
            before = merged.pop()[1] if merged and merged[-1][0] == colour else 0
            merged.append((colour, before + length))
        scenes = scenes_in_turn(*zip(*merged, strict=True))
        return Script((), (("Which colour was most?", answer),), scenes)
