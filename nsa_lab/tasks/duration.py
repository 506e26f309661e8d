"""Duration: scenes of different colours; which of them lasted longest?"""

import numpy as np

from nsa_lab.config.schema import DurationConfig
from nsa_lab.tasks.base import Script, Task, colours_with, scenes_in_turn, uneven_lengths
from nsa_lab.tasks.words import COLOURS


class DurationTask(Task):
    name = "duration"
    summary = "scenes of different colours and very different length: which colour (of 8) lasted longest"
    config_class = DurationConfig

    @staticmethod
    def chance(config: DurationConfig) -> float:
        return 1 / len(COLOURS)

    @staticmethod
    def script(config: DurationConfig, index: int, rng: np.random.Generator) -> Script:
        # The answer goes through all colours, the longest scene through all places in the clip.
        answer, longest = COLOURS[index % len(COLOURS)], index // len(COLOURS) % config.scenes
        colours = colours_with(answer, longest, config.scenes, rng)
        frames = config.frames - config.closing_frames - config.lead_frames
        lengths = sorted(uneven_lengths(frames, config.scenes, config.shortest_frames, rng))
        most = lengths.pop() + config.lead_frames
        lengths = [int(length) for length in rng.permutation(lengths)]
        lengths.insert(longest, most)
        return Script((), (("Which colour was longest?", answer),), scenes_in_turn(colours, lengths))
