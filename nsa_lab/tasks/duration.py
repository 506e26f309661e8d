"""Duration: scenes of different colours; which of them lasted longest?"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from nsa_lab.tasks.base import Script, colours_with, scenes_in_turn, uneven_lengths
from nsa_lab.tasks.scenes import ScenesTask
from nsa_lab.tasks.words import COLOURS


class Duration(ScenesTask):
    @dataclass
    class Config(ScenesTask.Config):
        """Which scene lasted longest, by at least `lead_frames` frames?"""

        lead_frames: int = 4

    summary = "scenes of different colours and very different length: which colour (of 8) lasted longest"
    spans = (*ScenesTask.spans, "lead_frames")

    @staticmethod
    def frames_needed(config: Any) -> int:
        return int(ScenesTask.frames_needed(config) + config.lead_frames)

    @staticmethod
    def chance(config: Config) -> float:
        return 1 / len(COLOURS)

    @staticmethod
    def script(config: Config, index: int, rng: np.random.Generator) -> Script:
        # The answer goes through all colours, the longest scene through all places in the clip.
        answer, longest = COLOURS[index % len(COLOURS)], index // len(COLOURS) % config.scenes
        colours = colours_with(answer, longest, config.scenes, rng)
        frames = config.frames - config.closing_frames - config.lead_frames
        lengths = sorted(uneven_lengths(frames, config.scenes, config.shortest_frames, rng))
        most = lengths.pop() + config.lead_frames
        lengths = [int(length) for length in rng.permutation(lengths)]
        lengths.insert(longest, most)
        return Script((), (("Which colour was longest?", answer),), scenes_in_turn(colours, lengths))
