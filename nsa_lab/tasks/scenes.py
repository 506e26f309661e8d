"""What tasks of scenes share: scenes of very different length, cut hard, one colour each."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from nsa_lab.errors import Problem
from nsa_lab.tasks.base import Task
from nsa_lab.tasks.words import COLOURS


class ScenesTask(Task):
    @dataclass
    class Config(Task.Config):
        """In frames, a scene lasts at least `shortest_frames`, and the last `closing_frames` show none."""

        frames: int = 40
        noise: float = 0.02
        distractors: int = 0
        train_clips: int = 1024
        val_clips: int = 256
        scenes: int = 4
        shortest_frames: int = 2
        closing_frames: int = 8

    spans: ClassVar[tuple[str, ...]] = ("frames", "shortest_frames", "closing_frames")

    @classmethod
    def problems(cls, config: Any, design: Any) -> Iterator[Problem]:
        yield from super().problems(config, design)
        needed = cls.frames_needed(config)
        if not 2 <= config.scenes <= len(COLOURS):
            yield Problem("scenes", f"{config.scenes} scenes; use 2 to {len(COLOURS)}, one colour each")
        elif needed > config.frames:
            yield Problem("frames", f"{config.frames} frames are fewer than the {needed} that its parts take at least")

    @staticmethod
    def frames_needed(config: Any) -> int:
        """Frames that the parts of a clip take at least."""
        return int(config.scenes * config.shortest_frames + config.closing_frames)
