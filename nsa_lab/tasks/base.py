"""What a task is: a script of events for each clip, the questions about them, and what is known to be reachable."""

import functools
import importlib.resources
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from nsa_lab.errors import Problem
from nsa_lab.layout import FRAMES_PER_PATCH, MERGE, PATCH, TOKEN_PIXELS
from nsa_lab.plugin import Plugin
from nsa_lab.tasks.words import COLOURS


@dataclass(frozen=True)
class Event:
    """A disc of one colour at a place, seen from frame `start` (even) for `frames` frames. A ring has a white core.
    Places beside each other are `apart` of the frame's side from each other."""

    colour: str
    place: str
    start: int
    frames: int
    ring: bool = False
    apart: float = 0.5


@dataclass(frozen=True)
class Scene:
    """A background of one colour from frame `start` (even) for `frames` frames; a cut is where one follows another."""

    colour: str
    start: int
    frames: int


@dataclass(frozen=True)
class Script:
    """What happens in one clip, and the (question, answer) pairs about it. Outside of scenes the background is grey."""

    events: tuple[Event, ...]
    turns: tuple[tuple[str, str], ...]
    scenes: tuple[Scene, ...] = ()


@dataclass(frozen=True)
class Record:
    """Accuracies in [0, 1] that a dense and a blind model reached with a task at some setting of its dials."""

    setting: str
    model: str
    steps: int
    seeds: int
    dense: float
    blind: float
    commit: str


class Task(Plugin, ABC):
    """A procedural video task.

    counts: settings that must be positive. spans: settings in frames that must be positive and whole temporal patches.
    stands_for: the benchmark of the paper whose skill the task asks for, in small.
    """

    @dataclass
    class Config:
        """The clips of a task. `frames` is their length; `noise` is a pixel standard deviation in [0, 1]."""

        enabled: bool = False
        frames: int = 64
        width: int = 56
        height: int = 56
        noise: float = 0.05
        distractors: int = 2
        train_clips: int = 512
        val_clips: int = 128

    summary: ClassVar[str]
    stands_for: ClassVar[str] = ""
    counts: ClassVar[tuple[str, ...]] = ("train_clips", "val_clips")
    spans: ClassVar[tuple[str, ...]] = ("frames",)

    @classmethod
    def problems(cls, config: Any, design: Any) -> Iterator[Problem]:
        for side in ("width", "height"):
            pixels = getattr(config, side)
            if pixels < TOKEN_PIXELS or pixels % TOKEN_PIXELS:
                yield Problem(side, f"{pixels} is not a multiple of {TOKEN_PIXELS} pixels ({PATCH} x {MERGE})")
        for name in cls.spans:
            frames = getattr(config, name)
            if frames < FRAMES_PER_PATCH or frames % FRAMES_PER_PATCH:
                yield Problem(name, f"{frames} is not a positive multiple of {FRAMES_PER_PATCH}")
        for name in cls.counts:
            if getattr(config, name) < 1:
                yield Problem(name, f"{getattr(config, name)} is not positive")
        if config.distractors < 0:
            yield Problem("distractors", f"{config.distractors} is negative; use 0 or more")
        if not 0 <= config.noise <= 1:
            yield Problem("noise", f"{config.noise} is outside 0 to 1")

    @staticmethod
    def video_tokens(config: Any) -> int:
        """Video tokens of one clip."""
        per_frame = (config.height // TOKEN_PIXELS) * (config.width // TOKEN_PIXELS)
        return int(config.frames // FRAMES_PER_PATCH * per_frame)

    @staticmethod
    @abstractmethod
    def chance(config: Any) -> float:
        """A blind guesser's mean accuracy over the questions of a clip."""

    @staticmethod
    @abstractmethod
    def script(config: Any, index: int, rng: np.random.Generator) -> Script:
        """The script of clip `index`; attributes that answers ask for are balanced over the indices."""

    @classmethod
    def describe(cls, name: str) -> str:
        """The task in a few lines: what it asks, chance, and the recorded accuracies."""
        lines = [f"{name}: {cls.summary}", f"  chance {cls.chance(cls.Config()):.1%}"]
        if cls.stands_for:
            lines[1] += f"; stands for {cls.stands_for}"
        for record in records(name):
            lines.append(
                f"  {record.setting}: dense {record.dense:.1%}, blind {record.blind:.1%}"
                f" ({record.model}, {record.steps} steps, {record.seeds} seed{'s' * (record.seeds > 1)},"
                f" commit {record.commit})"
            )
        if len(lines) == 2:
            lines.append(f"  accuracies: not measured; `nsa-lab tasks check {name}` does")
        return "\n".join(lines)


def free_starts(frames: int, event_frames: int, events: int, rng: np.random.Generator) -> list[int]:
    """Even start frames of `events` events in time order that do not overlap, every arrangement equally likely."""
    pairs = -(-event_frames // 2)
    spare = frames // 2 - events * pairs
    slots = np.sort(rng.choice(spare + events, size=events, replace=False)) - np.arange(events)
    return [2 * int(slot + number * pairs) for number, slot in enumerate(slots)]


def uneven_lengths(frames: int, scenes: int, shortest: int, rng: np.random.Generator) -> list[int]:
    """Even lengths of `scenes` scenes that fill `frames` frames, `shortest` or more each: a few long, many short.

    Shares of what is left come from a Dirichlet distribution of concentration 1/2.
    """
    pairs = frames // 2 - scenes * (shortest // 2)
    shares = rng.multinomial(pairs, rng.dirichlet([0.5] * scenes))
    return [shortest + 2 * int(share) for share in shares]


def colours_with(answer: str, place: int, count: int, rng: np.random.Generator) -> list[str]:
    """`count` different colours, `answer` at `place` and the others drawn."""
    others = [str(colour) for colour in rng.permutation([c for c in COLOURS if c != answer])]
    # The answer takes the place of one that comes again at the end, where all colours are wanted.
    colours = [*others, others[place % len(others)]][:count]
    colours[place] = answer
    return colours


def scenes_in_turn(colours: Sequence[str], lengths: Sequence[int]) -> tuple[Scene, ...]:
    """One scene after the other from the clip's first frame."""
    starts = np.cumsum([0, *lengths]).tolist()
    return tuple(Scene(*scene) for scene in zip(colours, starts, lengths, strict=False))


def records(name: str) -> list[Record]:
    """What dense and blind models reached with the task `name`, as measured so far."""
    return [Record(**row) for row in _all_records().get(name, [])]


@functools.cache
def _all_records() -> dict[str, list[dict[str, Any]]]:
    return json.loads(importlib.resources.files("nsa_lab.tasks").joinpath("records.json").read_text())
