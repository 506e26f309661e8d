"""What a task is: a script of events for each clip, the questions about them, and what is known to be reachable."""

import functools
import importlib.resources
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from nsa_lab.tasks.words import COLOURS


@dataclass(frozen=True)
class Event:
    """A disc of one colour at one place, shown from frame `start` (even) for `frames` frames."""

    colour: str
    place: str
    start: int
    frames: int


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


class Task(ABC):
    """A procedural video task."""

    name: ClassVar[str]
    summary: ClassVar[str]
    config_class: ClassVar[type]

    @staticmethod
    @abstractmethod
    def chance(config: Any) -> float:
        """A blind guesser's mean accuracy over the questions of a clip."""

    @staticmethod
    @abstractmethod
    def script(config: Any, index: int, rng: np.random.Generator) -> Script:
        """The script of clip `index`; attributes that answers ask for are balanced over the indices."""

    @classmethod
    def records(cls) -> list[Record]:
        """What dense and blind models reached, as measured so far."""
        return [Record(**row) for row in _all_records().get(cls.name, [])]

    @classmethod
    def describe(cls) -> str:
        """The task in a few lines: what it asks, chance, and the recorded accuracies."""
        lines = [f"{cls.name}: {cls.summary}", f"  chance {cls.chance(cls.config_class()):.1%}"]
        for record in cls.records():
            lines.append(
                f"  {record.setting}: dense {record.dense:.1%}, blind {record.blind:.1%}"
                f" ({record.model}, {record.steps} steps, {record.seeds} seed{'s' * (record.seeds > 1)},"
                f" commit {record.commit})"
            )
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
    colours = [str(colour) for colour in rng.permutation([c for c in COLOURS if c != answer])[:count]]
    colours[place] = answer
    return colours


def scenes_in_turn(colours: Sequence[str], lengths: Sequence[int]) -> tuple[Scene, ...]:
    """One scene after the other from the clip's first frame."""
    starts = np.cumsum([0, *lengths]).tolist()
    return tuple(Scene(*scene) for scene in zip(colours, starts, lengths, strict=False))


@functools.cache
def _all_records() -> dict[str, list[dict[str, Any]]]:
    return json.loads(importlib.resources.files("nsa_lab.tasks").joinpath("records.json").read_text())
