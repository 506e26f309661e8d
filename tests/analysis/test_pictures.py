"""The figures: they draw the data they are given, at the size they announce, with no text over another."""

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from PIL import Image

from nsa_lab.analysis.blocks_picture import block_colour, draw_blocks
from nsa_lab.analysis.query_picture import MAGENTA, draw_query
from nsa_lab.analysis.timeline import draw_timeline
from nsa_lab.analysis.view import Blocks, Choice, Video, edges, make_choice

QUERY = 16


def texts(figure):
    """Every text of a figure that is drawn."""
    found = list(figure.texts)
    for axes in figure.axes:
        found += [*axes.texts, axes.title, axes._left_title]
        if axes.axison:
            found += [axes.xaxis.label, axes.yaxis.label, *ticks(axes.xaxis, 0), *ticks(axes.yaxis, 1)]
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
    found += [text for legend in legends for text in legend.texts]
    return [text for text in found if text.get_visible() and text.get_text()]


def ticks(axis, coordinate):
    """The labels of the ticks inside the axis; matplotlib keeps others that it does not draw."""
    low, high = sorted(axis.get_view_interval())
    return [label for label in axis.get_ticklabels() if low <= label.get_position()[coordinate] <= high]


def assert_legible(figure):
    """No text over another, and none cut off at the edge."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = canvas.get_width_height()
    boxes = [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in texts(figure)]
    for name, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, f"{name!r} is cut off"
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        apart = a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 or b.y1 <= a.y0
        assert apart, f"{one!r} lies over {other!r}"


def outlines(figure):
    return [c for c in figure.axes[0].collections if isinstance(c, LineCollection)]


def test_blocks_are_outlined_in_their_colour_in_every_frame(video, blocks):
    figure = draw_blocks(video, blocks, "title")
    drawn = outlines(figure)
    assert len(drawn) == len(figure.axes[0].images) == 4
    for frame, lines in enumerate(drawn):
        wanted = [to_rgba(block_colour(block)) for block, *_ in edges(blocks.of_token[frame])]
        assert [tuple(colour) for colour in lines.get_colors()] == wanted
    numbers = {text.get_text() for text in figure.axes[0].texts}
    assert {"0", "1", "2", "3"} <= numbers and "frame 3   1.50 s" in numbers


def test_the_query_is_marked_its_future_blank_and_unselected_blocks_grey(video, blocks, tiles):
    figure = draw_query(video, blocks, make_choice(tiles, blocks, QUERY), "title")
    (mark,) = (patch for patch in figure.axes[0].patches if patch.get_edgecolor() == to_rgba(MAGENTA))
    row, column = 1, 1
    left, right, _, top = figure.axes[0].images[2].get_extent()
    cell = (right - left) / 3
    assert mark.get_xy() == pytest.approx((left + column * cell, top + row * cell))
    before, own, after = (np.asarray(image.get_array()) for image in figure.axes[0].images[1:4])
    assert len(np.unique(after.reshape(-1, 3), axis=0)) == 1  # all future
    assert (own[:28].min(-1) == own[:28].max(-1)).all()  # tile 2, not selected: grey
    assert (before.min(-1) < before.max(-1)).all()  # selected: tinted
    assert len(figure.axes[1].patches) == 3  # bars
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()][1].startswith("block 0   0.00-0.83 s")


def test_the_timeline_draws_lengths_similarity_and_known_cuts(video):
    of_token = np.repeat([0, 1, 2], [6, 12, 6]).reshape(4, 2, 3)
    runs = Blocks(of_token, np.array([6, 12, 6]), np.array([0, 6, 18]), np.array([5, 17, 23]), np.arange(3))
    figure = draw_timeline(video, runs, "title")
    similarity, lengths = figure.axes
    assert similarity.lines[0].get_xydata().tolist() == [[0.5, 1.0], [1.0, 0.2], [1.5, 1.0]]
    assert [(bar.get_x(), bar.get_width(), bar.get_height()) for bar in lengths.patches] == [
        (0.0, 0.5, 6),
        (0.5, 1.0, 12),
        (1.5, 0.5, 6),
    ]
    assert all([1.0, 1.0] in [list(line.get_xdata()) for line in axes.lines] for axes in figure.axes)


def test_scattered_blocks_stand_in_lanes(video, blocks):
    figure = draw_timeline(video, blocks, "title")
    assert len(figure.axes) == 3
    assert len(figure.axes[2].collections[0].get_paths()) == 4


def long_video(frames, h, w, name="clip"):
    images = np.zeros((frames, 28 * h, 28 * w, 3), np.uint8)
    return Video(name, images, np.arange(frames + 1) * 0.5, (frames, h, w), np.linspace(0, 1, frames - 1), None)


@pytest.mark.parametrize(
    "frames, h, w", [(1, 1, 1), (2, 2, 2), (70, 1, 3), (9, 3, 2), pytest.param(8, 1, 4, marks=pytest.mark.slow)]
)
def test_pictures_are_legible_and_of_the_right_size(frames, h, w, tmp_path):
    video, count = long_video(frames, h, w, "a-sample-with-a-very-long-name/clip-000123"), frames * h * w
    token = np.arange(count)
    blocks = Blocks(
        (token // 2).reshape(frames, h, w), np.bincount(token // 2), token[::2], token[1::2], token[::2] // 2
    )
    if count % 2:
        blocks = Blocks(token.reshape(frames, h, w), np.ones(count, int), token, token, token)
    n, query = len(blocks.lengths), count - 1
    weight = np.where(blocks.last < query, 1 / max(1, (blocks.last < query).sum()), np.nan)
    choice = Choice(query, weight, np.ones(n, int), 2)
    figures = {
        "blocks": draw_blocks(video, blocks, "Blocks over the frames: layer 12, partition random_like"),
        "query": draw_query(video, blocks, choice, "What one query selected: layer 12, partition random_like"),
        "timeline": draw_timeline(video, blocks, "Block lengths over time: layer 12, partition random_like"),
    }
    for name, figure in figures.items():
        assert_legible(figure)
        figure.savefig(tmp_path / f"{name}.png", dpi=50)
        with Image.open(tmp_path / f"{name}.png") as image:
            wanted = [int(50 * inches) for inches in figure.get_size_inches()]
            assert list(image.size) == pytest.approx(wanted, abs=1)
            assert len(image.convert("RGB").getcolors(1 << 20)) > 20
