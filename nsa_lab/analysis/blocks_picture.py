"""The frames of a video with the blocks of a partition outlined on them."""

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from nsa_lab.analysis.sheet import Sheet, shown_frames
from nsa_lab.analysis.view import Blocks, Video

PALETTE = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#00b3b3", "#f032e6", "#808000", "#9a6324", "#ffc400")
TINT = 0.12
LABEL_CELL = 0.24
"""Tokens at least this wide, in inches, have room for their block's number."""


def block_colour(block: int) -> tuple[float, float, float]:
    """The colour of a block: neighbours in time differ."""
    return to_rgb(PALETTE[block % len(PALETTE)])


def tinted(image: np.ndarray, cells: np.ndarray, colours: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """`image` [H, W, 3] uint8 with each token of `cells` [h, w] moved towards colours [N, 3] by strength [N]."""
    block = np.kron(cells, np.ones((image.shape[0] // cells.shape[0], image.shape[1] // cells.shape[1]), np.int64))
    share = strength[block][..., None]
    return (image * (1 - share) + 255 * colours[block] * share).round().astype(np.uint8)


def draw_blocks(video: Video, blocks: Blocks, title: str) -> Figure:
    """Every frame with its blocks outlined and tinted, one colour a block, and its number where it begins."""
    sheet = Sheet(video, shown_frames(len(blocks.of_token)))
    colours = np.array([block_colour(block) for block in range(len(blocks.lengths))])
    strength = np.full(len(colours), TINT)
    numbered = sheet.cell >= LABEL_CELL
    for frame in sheet.shown:
        cells = blocks.of_token[frame]
        sheet.picture(frame, tinted(video.images[frame], cells, colours, strength))
        sheet.outline(frame, cells, block_colour, 2.0)
        if numbered:
            _number(sheet, frame, blocks)
    sheet.title(title, f"{video.name}: {describe(blocks)}; {describe_frames(video, len(sheet.shown))}")
    sheet.legend(_legend(numbered))
    return sheet.figure


def describe(blocks: Blocks) -> str:
    """The blocks in words: how many, how long, and whether they are runs of tokens."""
    low, mean, high = blocks.lengths.min(), blocks.lengths.mean(), blocks.lengths.max()
    if len(blocks.lengths) == 1:
        return f"one block of length {high}"
    spread = (
        f"{high} {'token' if high == 1 else 'tokens'} each"
        if low == high
        else f"{low} to {high} tokens long, mean {mean:.1f}"
    )
    return f"{len(blocks.lengths)} {'blocks' if blocks.ordered else 'blocks of scattered tokens'}, {spread}"


def describe_frames(video: Video, shown: int) -> str:
    """The grid in words."""
    frames, h, w = video.grid
    part = f"{shown} of {frames} frames drawn" if shown < frames else f"{frames} frame{'s' if frames > 1 else ''}"
    return f"{part}, {w} x {h} tokens each"


def _legend(numbered: bool) -> list[Patch]:
    first = block_colour(0)
    outlined = "a block: one colour in every frame it covers; ten colours take turns"
    handles = [Patch(facecolor=(*first, TINT), edgecolor=first, linewidth=2, label=outlined)]
    return [*handles, Patch(facecolor=first, label="its number, on its first token")] if numbered else handles


def _number(sheet: Sheet, frame: int, blocks: Blocks) -> None:
    per_frame = blocks.of_token[frame].size
    for block in np.flatnonzero(blocks.first // per_frame == frame).tolist():
        row, column = divmod(int(blocks.first[block]) % per_frame, blocks.of_token.shape[2])
        x, y = sheet.corner[frame]
        sheet.axes.text(
            x + (column + 0.12) * sheet.cell,
            y + (row + 0.12) * sheet.cell,
            str(block),
            size=7,
            weight="bold",
            color="white",
            ha="left",
            va="top",
            bbox={"boxstyle": "square,pad=0.15", "facecolor": block_colour(block), "edgecolor": "none"},
        )
