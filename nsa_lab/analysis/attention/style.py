"""How the figures of `nsa-lab analyze` look: one palette for colour-blind readers, one frame, a caption below."""

import textwrap
from collections.abc import Sequence
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nsa_lab.analysis.sheet import INK
from nsa_lab.attention.branches import BRANCHES

OKABE_ITO = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
MARKERS = ("o", "s", "^", "D", "v", "P")
GRID = "#e6e9ed"
DPI = 110
TITLE, CAPTION_LINE, CHARACTER = 0.45, 0.175, 0.07
"""Inches: the title's height, a line of the caption, a character of it."""


def look_of(name: str) -> tuple[str, str]:
    """Colour and marker of a branch (in the order of BRANCHES), of their gated sum or of dense attention."""
    if name == "dense":
        return INK, "X"
    names = [*BRANCHES, "gated"]
    pairs = cycle(zip(OKABE_ITO, MARKERS, strict=True))
    return dict(zip(names, pairs, strict=False)).get(name, (OKABE_ITO[-1], MARKERS[-1]))


def in_order(names: set[str]) -> list[str]:
    """The branches among `names` in their order, then the others."""
    known = [name for name in (*BRANCHES, "gated", "dense") if name in names]
    return known + sorted(names - set(known))


def framed(title: str, caption: str, size: tuple[float, float]) -> Figure:
    """A figure with room for axes of `size` inches between a title and a caption."""
    lines = textwrap.wrap(caption, int(size[0] / CHARACTER))
    below = CAPTION_LINE * len(lines) + 0.2
    height = size[1] + TITLE + below
    figure = Figure(figsize=(size[0], height), layout="constrained", facecolor="white")
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(rect=(0.005, below / height, 0.99, size[1] / height), wspace=0.05, hspace=0.08)  # type: ignore[call-arg]
    left = 0.12 / size[0]
    figure.text(left, 1 - 0.12 / height, title, size=13, weight="bold", color=INK, va="top")
    figure.text(left, 0.1 / height, "\n".join(lines), size=9, color=INK, va="bottom", linespacing=1.25)
    return figure


def dress(axes: Axes, title: str, x: str, y: str) -> None:
    """Name the axes and give them the common look."""
    axes.set_title(title, size=10, color=INK, loc="left")
    axes.set_xlabel(x, size=9, color=INK)
    axes.set_ylabel(y, size=9, color=INK)
    axes.tick_params(labelsize=8, color=INK, labelcolor=INK)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def at_layers(axes: Axes, layers: Sequence[int]) -> None:
    """Ticks at layers, at most a dozen of them."""
    step = -(-len(layers) // 12) or 1
    axes.set_xticks(list(layers)[::step])


def legend(axes: Axes, columns: int = 1) -> None:
    """A legend where it covers least, if anything is named."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False, ncols=columns, labelcolor=INK)
