"""Order: several flashes of different colours; of two of them, which came first?"""

import numpy as np

from nsa_lab.config.schema import OrderConfig
from nsa_lab.tasks.base import Event, Script, Task, free_starts
from nsa_lab.tasks.words import COLOURS, PLACES


class OrderTask(Task):
    name = "order"
    summary = "flashes of different colours at different times: which of two came first"
    config_class = OrderConfig

    @staticmethod
    def chance(config: OrderConfig) -> float:
        return 1 / 2

    @staticmethod
    def script(config: OrderConfig, index: int, rng: np.random.Generator) -> Script:
        colours = [str(colour) for colour in rng.permutation(COLOURS)[: config.events]]
        starts = free_starts(config.frames, config.event_frames, config.events, rng)
        events = tuple(
            Event(colour, str(rng.choice(PLACES)), start, config.event_frames)
            for colour, start in zip(colours, starts, strict=True)
        )
        chosen = rng.permutation(config.events)
        turns = []
        for number in range(config.questions):
            first, later = (colours[at] for at in sorted(chosen[2 * number : 2 * number + 2]))
            # One bit of the index per question: the answer is named first equally often, whatever the others' answers.
            named = (first, later) if index >> number & 1 else (later, first)
            turns.append((f"Which came first, {named[0]} or {named[1]}?", first))
        return Script(events, tuple(turns))
