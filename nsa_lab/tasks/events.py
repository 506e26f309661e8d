"""What tasks of events share: discs that flash at times of their own, and a grey end."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nsa_lab.errors import Problem
from nsa_lab.layout import FRAMES_PER_PATCH
from nsa_lab.tasks.base import Task


class EventsTask(Task):
    @dataclass
    class Config(Task.Config):
        """The last `closing_frames` show no event."""

        closing_frames: int = 0

    @classmethod
    def problems(cls, config: Any, design: Any) -> Iterator[Problem]:
        yield from super().problems(config, design)
        if config.closing_frames < 0 or config.closing_frames % FRAMES_PER_PATCH:
            yield Problem(
                "closing_frames", f"{config.closing_frames} is neither 0 nor a multiple of {FRAMES_PER_PATCH}"
            )

    @staticmethod
    def crowded(config: Any, events: int, gap: int = 0) -> Iterator[Problem]:
        """A problem where `events` events of `event_frames`, each with `gap` frames after it, do not fit."""
        # An event begins on an even frame, so one of odd length takes a frame more.
        needed = events * (config.event_frames + config.event_frames % FRAMES_PER_PATCH + gap)
        room = config.frames - config.closing_frames
        if needed > room:
            said = f"{events} events of {config.event_frames} frames do not fit into {room} frames"
            alone = f"{config.event_frames} is more than the clip's {room} frames"
            closing = f", the closing {config.closing_frames} left out" * bool(config.closing_frames)
            yield Problem("event_frames", (alone if events == 1 else said) + closing)


class Skill(EventsTask):
    @dataclass
    class Config(EventsTask.Config):
        """Clips that a small model learns from in a few hundred steps, even where text reads their end alone."""

        frames: int = 40
        noise: float = 0.02
        distractors: int = 0
        train_clips: int = 1024
        val_clips: int = 256
        closing_frames: int = 8
        event_frames: int = 4

    counts = (*EventsTask.counts, "event_frames")


class PlacesSkill(Skill):
    @dataclass
    class Config(Skill.Config):
        """Neighbouring places are `apart` of the side from each other. At 0.5 discs stand in the middle of their tokens
        and look alike everywhere; nearer to each other, a token's own pixels tell its place."""

        apart: float = 0.3

    @classmethod
    def problems(cls, config: Any, design: Any) -> Iterator[Problem]:
        yield from super().problems(config, design)
        if not 0 < config.apart <= 0.5:
            yield Problem("apart", f"{config.apart} is not above 0 and at most 0.5 of the side")
