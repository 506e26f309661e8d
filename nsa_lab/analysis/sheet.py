"""A figure with a video's frames on a grid, laid out in inches, so that no text meets another or a picture."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from nsa_lab.analysis.view import Video, edges

INK = "#2f3b48"
MAX_FRAMES = 48
MAX_WANTED = 36
COLUMNS = 8
FRAME_WIDTH = 1.35
GAP = 0.12
LABEL = 0.22
MARGIN = 0.25
PANEL = 4.4
BAR = 0.19
HEADER = 0.85
CHARACTER = 0.083
"""Width of a character of the subtitle, in inches, on the safe side."""
FOOTER = 0.65


def shown_frames(frames: int, wanted: Sequence[int] = ()) -> list[int]:
    """At most MAX_FRAMES of `frames`: the `wanted` ones, the first of them first, and others evenly spread."""
    if frames <= MAX_FRAMES:
        return list(range(frames))
    kept = list(dict.fromkeys(wanted))[:MAX_WANTED]
    others = np.setdiff1d(np.arange(frames), kept)
    spread = np.linspace(0, len(others) - 1, MAX_FRAMES - len(kept)).round().astype(int)
    return sorted([*kept, *others[spread].tolist()])


class Sheet:
    """Frames `shown` of `video` on axes whose unit is the inch, and beside them a panel for `bars` bars, if any."""

    def __init__(self, video: Video, shown: Sequence[int], bars: int = 0):
        self.video, self.shown = video, list(shown)
        _, h, w = video.grid
        self.cell = FRAME_WIDTH / w
        self.frame_height = self.cell * h
        columns = min(COLUMNS, len(self.shown))
        rows = math.ceil(len(self.shown) / columns)
        row_height = self.frame_height + LABEL + GAP
        # A short video still leaves room for the texts above and below it.
        width = max(columns * (FRAME_WIDTH + GAP), 5 * FRAME_WIDTH)
        panel = PANEL if bars else 0.0
        height = max(rows * row_height, BAR * max(bars, 6) + 0.8 if bars else 0)
        self.size = (width + panel + 2 * MARGIN, height + HEADER + FOOTER)
        self.figure = Figure(figsize=self.size, facecolor="white")
        self.axes = self._axes(MARGIN, HEADER, width, height)
        self.axes.set(xlim=(0, width), ylim=(height, 0))
        self.axes.axis("off")
        self.panel = (
            self._axes(MARGIN + width + 0.44 * PANEL, HEADER + LABEL, 0.52 * PANEL, height - 0.6) if bars else None
        )
        self.corner = {
            frame: (place % columns * (FRAME_WIDTH + GAP), place // columns * row_height + LABEL)
            for place, frame in enumerate(self.shown)
        }

    def _axes(self, left: float, top: float, width: float, height: float) -> Axes:
        total_width, total_height = self.size
        return self.figure.add_axes(
            (left / total_width, 1 - (top + height) / total_height, width / total_width, height / total_height)
        )

    def title(self, title: str, subtitle: str) -> None:
        """A line at the top left, and below it one or two more."""
        wrapped = "\n".join(textwrap.wrap(subtitle, int(self.size[0] / CHARACTER)))
        for text, top, size, weight in ((title, 0.18, 13, "bold"), (wrapped, 0.46, 9.5, "normal")):
            x, y = MARGIN / self.size[0], 1 - top / self.size[1]
            self.figure.text(x, y, text, size=size, weight=weight, color=INK, va="top")

    def legend(self, handles: Sequence[Patch]) -> None:
        """Two rows at the bottom left."""
        at = (MARGIN / self.size[0], 0.1 / self.size[1])
        self.figure.legend(
            handles=list(handles),
            loc="lower left",
            bbox_to_anchor=at,
            ncols=math.ceil(len(handles) / 2),
            frameon=False,
            fontsize=9,
            borderaxespad=0,
            borderpad=0,
            handlelength=1.4,
            columnspacing=1.8,
            labelcolor=INK,
        )

    def picture(self, frame: int, image: np.ndarray) -> None:
        """Frame number and time above, `image` [H, W, 3] uint8 below."""
        x, y = self.corner[frame]
        self.axes.imshow(image, extent=(x, x + FRAME_WIDTH, y + self.frame_height, y), aspect="auto")
        text = f"frame {frame}   {self.video.seconds[frame]:.2f} s"
        self.axes.text(x, y - 0.05, text, size=7.5, color=INK, va="bottom")

    def outline(self, frame: int, cells: np.ndarray, style: Any, width: float) -> None:
        """Outline the blocks `cells` [h, w] of a frame in at most `width` points, less where tokens are small.

        `style(block)` is a colour, or None for no outline.
        """
        token = 72 * self.cell
        width = min(width, 0.15 * token)
        x, y = self.corner[frame]
        lines, colours = [], []
        for block, (x0, y0), (x1, y1) in edges(cells, inset=width / token / 2):
            if (colour := style(block)) is not None:
                lines.append([(x + x0 * self.cell, y + y0 * self.cell), (x + x1 * self.cell, y + y1 * self.cell)])
                colours.append(colour)
        self.axes.add_collection(LineCollection(lines, colors=colours, linewidths=width, capstyle="round"))
