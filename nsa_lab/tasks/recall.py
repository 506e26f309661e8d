"""Recall: scenes of different colours follow one another, a white disc flashes in one; which colour was there then?"""

import numpy as np

from nsa_lab.config.schema import RecallConfig
from nsa_lab.tasks.base import Event, Scene, Script, Task, colours_with, scenes_in_turn, uneven_lengths
from nsa_lab.tasks.words import COLOURS, PLACES


class RecallTask(Task):
    name = "recall"
    summary = "scenes of very different length: which colour (of 8) was there when the flash came"
    config_class = RecallConfig

    @staticmethod
    def chance(config: RecallConfig) -> float:
        return 1 / len(COLOURS)

    @staticmethod
    def script(config: RecallConfig, index: int, rng: np.random.Generator) -> Script:
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
