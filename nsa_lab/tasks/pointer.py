"""Pointer: each scene shows a disc of another one's colour; going from scene to scene, what colour comes last?"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nsa_lab.errors import Problem
from nsa_lab.tasks.base import Event, Script, scenes_in_turn
from nsa_lab.tasks.scenes import ScenesTask
from nsa_lab.tasks.words import COLOURS, NUMBERS, PLACES

DEPTHS = ("zero", *NUMBERS)


class Pointer(ScenesTask):
    """The way begins at the last scene. A hop goes to the scene that the disc names; asked for is what the disc names
    in the scene where the way ends, which is none of those that it went through. Whoever names a colour of the clip at
    random is right once in `scenes` times or so."""

    @dataclass
    class Config(ScenesTask.Config):
        """Clips ask for `least_hops` to `hops` hops, each depth equally often."""

        scenes: int = 4
        hops: int = 2
        least_hops: int = 2

    summary = "each scene names another one: which colour (of 8) is named after some hops from the last scene"

    @classmethod
    def problems(cls, config: Config, design: object) -> Iterator[Problem]:
        yield from super().problems(config, design)
        if not 0 <= config.least_hops <= config.hops:
            yield Problem("least_hops", f"{config.least_hops} is not from 0 to hops={config.hops}")
        elif config.hops + 2 > config.scenes:
            yield Problem(
                "hops", f"{config.hops} hops need {config.hops + 2} scenes, of which there are {config.scenes}"
            )

    @staticmethod
    def chance(config: Config) -> float:
        return 1 / len(COLOURS)

    @staticmethod
    def script(config: Config, index: int, rng: np.random.Generator) -> Script:
        # The answer goes through all colours, the depth through all there are.
        answer = COLOURS[index % len(COLOURS)]
        hops = config.least_hops + index // len(COLOURS) % (config.hops - config.least_hops + 1)
        others = [str(colour) for colour in rng.permutation([c for c in COLOURS if c != answer])]
        way, rest = others[: hops + 1], [*others[hops + 1 : config.scenes - 1], answer]
        names = dict(zip(way, [*way[1:], answer], strict=True))
        for colour in rest:
            names[colour] = str(rng.choice([other for other in (*way, *rest) if other != colour]))
        in_time = [str(colour) for colour in rng.permutation([*way[1:], *rest])]
        scenes = scenes_in_turn([*in_time, way[0]], _even_lengths(config))
        events = tuple(Event(names[s.colour], str(rng.choice(PLACES)), s.start, s.frames) for s in scenes)
        return Script(events, ((f"What colour came after {DEPTHS[hops]}?", answer),), scenes)


def _even_lengths(config: Pointer.Config) -> list[int]:
    pairs = (config.frames - config.closing_frames) // 2
    return [2 * (pairs // config.scenes + (number < pairs % config.scenes)) for number in range(config.scenes)]
