"""Recall: scenes of different colours follow one another, a white disc flashes in one; which colour was there then?"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nsa_lab.errors import Problem
from nsa_lab.tasks.base import Event, Scene, Script, colours_with, scenes_in_turn, uneven_lengths
from nsa_lab.tasks.scenes import ScenesTask
from nsa_lab.tasks.words import COLOURS, PLACES


class Recall(ScenesTask):
    @dataclass
    class Config(ScenesTask.Config):
        """In which scene was the white flash? It lasts `event_frames` frames up to its whole scene."""

        event_frames: int = 2

    stands_for = "LongVideoBench"
    summary = "scenes of very different length: which colour (of 8) was there when the flash came"
    spans = (*ScenesTask.spans, "event_frames")

    @classmethod
    def problems(cls, config: Config, design: object) -> Iterator[Problem]:
        yield from super().problems(config, design)
        if config.event_frames > config.shortest_frames:
            yield Problem(
                "event_frames", f"{config.event_frames} is more than shortest_frames={config.shortest_frames}"
            )

    @staticmethod
    def chance(config: Config) -> float:
        return 1 / len(COLOURS)

    @staticmethod
    def script(config: Config, index: int, rng: np.random.Generator) -> Script:
        lengths = uneven_lengths(config.frames - config.closing_frames, config.scenes, config.shortest_frames, rng)
        # The flash comes at a moment, all being equally likely: a long scene is asked for more often than a short one.
        asked = int(rng.choice(config.scenes, p=np.array(lengths) / sum(lengths)))
        answer = COLOURS[index % len(COLOURS)]
        scenes = scenes_in_turn(colours_with(answer, asked, config.scenes, rng), lengths)
        flash = _flash(scenes[asked], config.event_frames, rng)
        return Script((flash,), (("What colour was it when the flash came?", answer),), scenes)


def _flash(scene: Scene, shortest: int, rng: np.random.Generator) -> Event:
    """A white disc for `shortest` frames up to the whole scene, the logarithm of its length being uniform."""
    pairs = round(float(np.exp(rng.uniform(np.log(shortest // 2), np.log(scene.frames // 2)))))
    start = scene.start + 2 * int(rng.integers(scene.frames // 2 - pairs + 1))
    return Event("white", str(rng.choice(PLACES)), start, 2 * pairs)
