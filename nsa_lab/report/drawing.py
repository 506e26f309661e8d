"""What pictures of a report share: colours, axes, and SVG."""

import io
import re
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

INK, FAINT, GRID = "#2f3b48", "#9aa5b1", "#e4e7eb"
# Okabe and Ito's colours, which readers with any colour vision tell apart, each with a shape of its own.
LOOKS = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"))
WIDTH = 4.6


def make_axes(height: float) -> tuple[Figure, Any]:
    """A figure so many inches high, and its axes."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.spines[:].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=8)
    axes.xaxis.label.set(color=INK, size=8)
    axes.yaxis.label.set(color=INK, size=8)
    return figure, axes


def legend(axes: Any) -> None:
    """Every name once, where there are several."""
    handles, labels = axes.get_legend_handles_labels()
    each = dict(zip(labels, handles, strict=True))
    if len(each) > 1:
        axes.figure.legend(each.values(), each, fontsize=7.5, frameon=False, loc="outside upper left", labelcolor=INK)


def plain(name: str) -> str:
    """A name as matplotlib draws it letter by letter: no mathematics, and in legends too."""
    escaped = name.replace("$", r"\$")
    return f"\u200b{escaped}" if escaped.startswith("_") else escaped


def to_svg(figure: Figure) -> str:
    """The picture as an element for HTML. Its texts stay texts, so that they can be searched and read out."""
    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "nsa-lab"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "", text[text.index("<svg") :], count=1)
