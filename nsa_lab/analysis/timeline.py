"""A strip over time: how long blocks are, against how much neighbouring frames resemble each other."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from nsa_lab.analysis.blocks_picture import block_colour, describe
from nsa_lab.analysis.sheet import INK
from nsa_lab.analysis.view import Blocks, Video

CUT = "#111111"
LINE = "#2a6f97"


def draw_timeline(video: Video, blocks: Blocks, title: str) -> Figure:
    """Similarity of neighbouring frames above; below it each block, as wide as its span and as high as its length.

    Blocks of scattered tokens overlap in time: they stand in lanes, and a panel between gives the lengths by frame.
    """
    lanes = block_lanes(blocks)
    ratios = [1.0, 1.1] if blocks.ordered else [1.0, 0.9, min(2.5, 0.4 + 0.12 * (max(lanes) + 1))]
    figure = Figure(figsize=(12, 1.3 + 1.7 * sum(ratios)), layout="constrained", facecolor="white")
    figure.suptitle(title, size=13, weight="bold", color=INK, x=0.01, ha="left")
    panels = list(figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios))
    _similarity(panels[0], video)
    panels[0].set_title(f"{video.name}: {describe(blocks)}", size=9.5, color=INK, loc="left")
    if blocks.ordered:
        _bars(panels[1], video, blocks)
    else:
        _lengths_by_frame(panels[1], video, blocks)
        _lanes(panels[2], video, blocks, lanes)
    for axes in panels:
        _dress(axes, video)
    panels[-1].set_xlabel("time (s)", color=INK)
    return figure


def block_lanes(blocks: Blocks) -> list[int]:
    """The lane of each block, so that no two blocks of a lane overlap in time and as few lanes as possible are used."""
    free: list[int] = []
    lanes = []
    for first, last in zip(blocks.first.tolist(), blocks.last.tolist(), strict=True):
        lane = next((lane for lane, end in enumerate(free) if end < first), len(free))
        free[lane : lane + 1] = [last]
        lanes.append(lane)
    return lanes


def _similarity(axes: Axes, video: Video) -> None:
    if len(video.similarity):
        axes.plot(
            video.seconds[1:-1],
            video.similarity,
            color=LINE,
            marker=".",
            linewidth=1.2,
            label="similarity to the frame before",
        )
    else:
        axes.text(0.5, 0.5, "one frame: nothing to compare", transform=axes.transAxes, ha="center", color=INK)
        axes.set_yticks([])
    axes.set_ylabel("cosine of mean\nframe embeddings", color=INK)
    if video.cuts:
        axes.plot([], [], color=CUT, linestyle="--", linewidth=1.2, label="known change of content")


def _bars(axes: Axes, video: Video, blocks: Blocks) -> None:
    edge = video.time(np.append(blocks.first, blocks.last[-1] + 1))
    colours = [block_colour(block) for block in range(len(blocks.lengths))]
    axes.bar(
        edge[:-1],
        blocks.lengths,
        np.diff(edge),
        align="edge",
        color=colours,
        edgecolor="white",
        linewidth=0.5,
        alpha=0.8,
    )
    axes.set_ylabel("block length\n(tokens)", color=INK)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, 1.15 * blocks.lengths.max())


def _lengths_by_frame(axes: Axes, video: Video, blocks: Blocks) -> None:
    length = blocks.lengths[blocks.of_token].reshape(video.grid[0], -1)
    low, mean, high = length.min(1), length.mean(1), length.max(1)
    edge = video.seconds
    axes.stairs(high, edge, baseline=low, fill=True, color=LINE, alpha=0.2, label="shortest to longest")
    axes.stairs(mean, edge, baseline=None, color=LINE, linewidth=1.5, label="mean over the frame's tokens")
    axes.set_ylabel("block length\n(tokens)", color=INK)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, 1.15 * blocks.lengths.max())


def _lanes(axes: Axes, video: Video, blocks: Blocks, lanes: list[int]) -> None:
    begin, end = video.time(blocks.first), video.time(blocks.last + 1)
    bars = [Rectangle((a, lane + 0.1), b - a, 0.8) for a, b, lane in zip(begin, end, lanes, strict=True)]
    colours = [block_colour(block) for block in range(len(bars))]
    axes.add_collection(
        PatchCollection(bars, facecolors=colours, edgecolors="white", linewidths=_edge(blocks), alpha=0.8)
    )
    axes.set_ylim(max(lanes) + 1, 0)
    axes.set_yticks([])
    axes.set_ylabel("span of\neach block", color=INK)


def _edge(blocks: Blocks) -> float:
    """The line between bars, in points; none where it would hide them."""
    return 0.5 if len(blocks.lengths) <= 200 else 0.0


def _dress(axes: Axes, video: Video) -> None:
    for second in video.cuts or ():
        if video.seconds[0] < second < video.seconds[-1]:
            axes.axvline(second, color=CUT, linestyle="--", linewidth=1.2)
    axes.set_xlim(float(video.seconds[0]), float(video.seconds[-1]))
    axes.tick_params(labelsize=8, color=INK, labelcolor=INK)
    axes.grid(True, axis="y", color="#e6e9ed", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        # Above the panel, where it covers no data.
        axes.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, borderaxespad=0.1)
