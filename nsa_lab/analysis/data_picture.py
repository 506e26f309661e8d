"""A picture of a data set: how long its videos are, and how many tokens its rows have."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nsa_lab.analysis.attention.style import OKABE_ITO, dress, framed
from nsa_lab.analysis.sheet import INK
from nsa_lab.config import ExperimentConfig
from nsa_lab.data.check import Check
from nsa_lab.data.summary import sizes

BINS = 40
SIZE = (10.0, 3.1)
ROOM = 1.4
"""How high the axes are, in units of the highest bar: the names of the limits stand above."""


def draw_data(found: Check, config: ExperimentConfig) -> Figure:
    """Histograms of videos' seconds and frames and of rows' tokens, with the limits that are set."""
    rows, videos = len(found.good), len(found.looks)
    title = f"{rows:,} rows that can be used, {videos:,} videos that can be read"
    lost = ", ".join(f"{count:,} with {kind}" for kind, count in found.lost.items()) or "none"
    figure = framed(title, f"{config.data.annotations}; rows that cannot be used: {lost}.", SIZE)
    limits: dict[str, dict[str, int | None]] = {
        "frames at data.fps": {
            "data.max_frames": config.data.max_frames,
            "data.fewest_frames": config.data.fewest_frames,
            "data.most_frames": config.data.most_frames,
        },
        "tokens of a row": {
            "data.max_tokens": config.data.max_tokens,
            "training.tokens_per_batch": config.training.tokens_per_batch,
        },
    }
    for axes, (what, values) in zip(figure.subplots(1, 3), sizes(found).items(), strict=True):
        counts, *_ = axes.hist(values, bins=_bins(values), color=OKABE_ITO[0])
        axes.set_ylim(0, ROOM * max(1, *counts))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        dress(axes, what, "", "rows" if "row" in what else "videos")
        _draw_limits(axes, limits.get(what, {}), max(values, default=0.0))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="upper right", fontsize=8, frameon=False, labelcolor=INK)
    return figure


def _bins(values: list[float]) -> np.ndarray:
    top = max(values, default=1.0)
    return np.linspace(0, top or 1.0, BINS + 1)


def _draw_limits(axes: Axes, limits: dict[str, int | None], most: float) -> None:
    """A line at each limit that is not far beyond all values."""
    for number, (setting, limit) in enumerate(limits.items(), start=1):
        if limit and limit <= 2 * most:
            axes.axvline(limit, color=OKABE_ITO[number], linewidth=1.5, ymax=1 / ROOM, label=f"{setting}={limit}")
