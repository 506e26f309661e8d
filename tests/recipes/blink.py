"""A task: was there a red flash in the clip?"""

from dataclasses import dataclass

import numpy as np

from nsa_lab.tasks.base import Event, Script, Task, free_starts


class Blink(Task):
    @dataclass
    class Config(Task.Config):
        """In every second clip a red flash of `blink_frames` frames."""

        blink_frames: int = 2

    summary = "is there a red flash, yes or no"
    counts = (*Task.counts, "blink_frames")

    @staticmethod
    def chance(config: Config) -> float:
        return 1 / 2

    @staticmethod
    def script(config: Config, index: int, rng: np.random.Generator) -> Script:
        start = free_starts(config.frames, config.blink_frames, 1, rng)[0]
        events = (Event("red", "northwest", start, config.blink_frames),) if index % 2 else ()
        return Script(events, (("Was there a red flash?", "yes" if index % 2 else "no"),))
