"""What training.recompute=auto settles on: its own rules, given the GPU's memory and what plan says is used of it."""

from collections.abc import Callable
from dataclasses import replace

from nsa_lab.model.recompute import MORE, Memory
from nsa_lab.scale.activations import Layer
from nsa_lab.scale.memory import Setup
from nsa_lab.scale.shape import Widths

STEPS = 6
"""Steps of a training after which what is kept changes no more."""


def settled(
    setup: Setup, widths: Widths, layer: Layer, vision: Layer, tokens: int, left: Callable[[Setup], float]
) -> Setup:
    """`setup` with what each decoder layer keeps of so many tokens after some steps.

    layer, vision: what a decoder layer and a block of the tower save; left: the bytes that a setup leaves of the GPU.
    """
    auto = Memory(widths.layers, host=setup.host - setup.blocks_away(widths, vision.input) * vision.input)
    auto.longest, auto.kept = tokens, {way: layer.kept(way) / tokens for way in MORE}
    for _ in range(STEPS):
        auto.settle(left(setup), 0.0, tokens, int(layer.input / tokens))
        setup = replace(setup, ways=tuple(auto.way(number) for number in range(widths.layers)))
    return setup


def host_bytes(setup: Setup, widths: Widths, layer: Layer, vision: Layer) -> dict[str, float]:
    """What is on the host of a process, by whose it is."""
    away = {
        "inputs of the vision tower": setup.blocks_away(widths, vision.input) * vision.input,
        "decoder layers": setup.ways.count("offload") * layer.saved,
    }
    return {what: size for what, size in away.items() if size}
