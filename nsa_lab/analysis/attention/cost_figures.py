"""The figures of shared choices, budget and latency; they show the rows of the tables and nothing else."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from nsa_lab.analysis.attention.spent import ALL
from nsa_lab.analysis.attention.style import at_layers, dress, framed, in_order, legend, look_of
from nsa_lab.analysis.sheet import INK

Rows = Sequence[dict[str, Any]]
LABELLED = 8
"""At most so many layers have a line of their own in the legend."""


def draw_overlap(rows: Rows, about: str) -> Figure:
    """Neighbouring queries' blocks by distance, the union over tiles, and neighbouring layers' keys."""
    by_what = {what: [row for row in rows if row["what"] == what] for what in ("queries", "tile", "layers")}
    caption = (
        "Jaccard's index: what two choices have in common, over what either holds. Lines and full bars: queries that"
        " had a choice (more blocks open than they take); pale bars: all. Dashed: as many blocks drawn at random."
        " Middle: how many blocks the queries of a tile read together, beside one query's. Right: keys in the blocks"
        f" that a query chose in two layers. {about}"
    )
    figure = framed("Selection: how much of the choice is shared", caption, (13, 3.4))
    distances, tiles, layers = figure.subplots(1, 3)
    _distances(distances, by_what["queries"])
    _tiles(tiles, by_what["tile"])
    _pairs(layers, by_what["layers"])
    return figure


def _distances(axes: Axes, rows: Rows) -> None:
    layers = sorted({row["layer"] for row in rows})
    for place, layer in enumerate(layers):
        own = [row for row in rows if row["layer"] == layer]
        colour = colormaps["cividis"](0.9 * place / max(1, len(layers) - 1))
        label = f"layer {layer}" if len(layers) <= LABELLED or place in (0, len(layers) - 1) else None
        x = [row["distance"] for row in own]
        axes.plot(
            x, [row["jaccard_free"] for row in own], color=colour, marker="o", markersize=4, linewidth=1.4, label=label
        )
    x = sorted({row["distance"] for row in rows})
    drawn = [np.mean([row["jaccard_random"] for row in rows if row["distance"] == d]) for d in x]
    axes.plot(x, drawn, color=INK, linestyle="--", linewidth=1.2, label="at random")
    axes.set_xscale("log", base=2)
    axes.set_ylim(0, 1.02)
    _plain(axes.xaxis, x)
    dress(axes, "queries of one clip", "distance in tokens", "Jaccard's index of blocks")
    legend(axes)


def _tiles(axes: Axes, rows: Rows) -> None:
    layers, sizes = (sorted({row[key] for row in rows}) for key in ("layer", "distance"))
    alone = [next(row["alone"] for row in rows if row["layer"] == layer) for layer in layers]
    kinds = ["one query", *(f"tile of {size}" for size in sizes)]
    for place, (kind, hatch) in enumerate(zip(kinds, ("", "///", "xxx"), strict=False)):
        size = None if place == 0 else sizes[place - 1]
        found = [row for row in rows if row["distance"] == size]
        height = alone if size is None else [row["blocks"] for row in found]
        x = np.arange(len(layers)) + 0.27 * (place - (len(kinds) - 1) / 2)
        empty = bool(np.isnan(height).all())
        label = f"{kind}: no clip holds one" if empty else kind
        colour = look_of("selection")[0] if place == 0 else colormaps["cividis"](0.25 + 0.35 * (place - 1))
        axes.bar(x, height, 0.25, color=colour, hatch=hatch, edgecolor="white", linewidth=0, label=label)
    axes.set_xticks(range(len(layers)), list(map(str, layers)))
    axes.set_ylim(0, 1.35 * axes.get_ylim()[1])
    dress(axes, "union over a tile of queries", "layer", "blocks read")
    legend(axes)


def _pairs(axes: Axes, rows: Rows) -> None:
    if not rows:
        axes.text(0.5, 0.5, "no two layers that select\nfollow each other", ha="center", va="center", color=INK, size=9)
        axes.set(xticks=[], yticks=[])
    colour = look_of("selection")[0]
    for place, row in enumerate(rows):
        axes.bar(place, row["jaccard"], 0.7, color=colour, alpha=0.3)
        axes.bar(place, row["jaccard_free"], 0.4, color=colour)
    step = -(-len(rows) // 10) or 1
    names = [f"{row['layer']}–{row['other']}" for row in rows]
    axes.set_xticks(range(0, len(rows), step), names[::step])
    axes.set_ylim(0, 1.02)
    dress(axes, "neighbouring layers", "layers", "Jaccard's index of keys")


def draw_budget(rows: Rows, about: str) -> Figure:
    """Keys read by layer and branch, stacked, beside what dense attention reads; and two ratios."""
    layers = sorted({row["layer"] for row in rows})
    whole = {row["layer"]: row for row in rows if row["branch"] == ALL}
    caption = (
        "Left: what a video query reads on average, with the ramp at the clip's start; hatched: pooled keys. A key that"
        " two branches read counts twice. Right: token keys over those of dense causal attention among the video"
        f" tokens, and the paper's figure 2K/(L-1), at most 1, which leaves out ramp and pooled keys. {about}"
    )
    figure = framed("Budget: keys per query", caption, (max(9.5, 6 + 0.3 * len(layers)), 3.4))
    keys, ratio = figure.subplots(1, 2, width_ratios=[1.4, 1])
    base = np.zeros(len(layers))
    branches = in_order({row["branch"] for row in rows} - {ALL})
    for branch in branches:
        own = {row["layer"]: row for row in rows if row["branch"] == branch}
        for kind, hatch in (("keys", ""), ("pooled", "///")):
            height = np.array([own[layer][kind] if layer in own else 0.0 for layer in layers])
            if height.any():
                label = f"{branch} (pooled keys)" if hatch else branch
                colour = look_of(branch)[0]
                keys.bar(
                    layers, height, 0.7, base, color=colour, hatch=hatch, edgecolor="white", linewidth=0, label=label
                )
                base += height
    rest = np.array([whole[layer]["keys"] + whole[layer]["pooled"] for layer in layers]) - base
    if (rest > 1e-6 * (1 + base)).any():
        keys.bar(layers, rest, 0.7, base, color=look_of("dense")[0], label="layers without branches")
    keys.axhline(whole[layers[0]]["dense"], color=INK, linestyle="--", linewidth=1.2, label="dense attention")
    keys.set_ylim(0, 1.5 * keys.get_ylim()[1])
    dress(keys, "keys per query", "layer", "keys")
    at_layers(keys, layers)
    legend(keys, 2)
    for name, label, style in (("of_dense", "token keys read", "-"), ("paper_ratio", "the paper's 2K/(L-1)", ":")):
        found = [100 * whole[layer][name] for layer in layers]
        ratio.plot(layers, found, color=INK, linestyle=style, marker="o", markersize=4, linewidth=1.4, label=label)
    ratio.set_ylim(0, 1.25 * max(100.0, ratio.get_ylim()[1]))
    dress(ratio, "of dense attention", "layer", "%")
    at_layers(ratio, layers)
    legend(ratio)
    return figure


def draw_latency(rows: Rows) -> Figure:
    """Seconds and peak memory of one layer's forward by context length: each branch alone, all, and dense."""
    caption = (
        "One layer's attention, forward, batch 1, random heads at the run's head layout; each point in a process of its"
        " own, the fastest repeat. A branch alone is the layer with only that branch on: selection's time holds pooling"
        f" and scoring. {rows[0]['device']}, {rows[0]['threads']} of {rows[0]['cores']} cores."
    )
    figure = framed("Latency and memory of one layer", caption, (10, 3.6))
    found = {row["what"] for row in rows}
    names = [*in_order(found - {ALL, "dense"}), *(name for name in (ALL, "dense") if name in found)]
    lengths = sorted({row["video_tokens"] for row in rows})
    for axes, key, title, unit in zip(
        figure.subplots(1, 2),
        ("seconds", "peak_mib"),
        ("time", "peak memory above the libraries'"),
        ("s", "MiB"),
        strict=True,
    ):
        for name in names:
            own = sorted((row["video_tokens"], row[key]) for row in rows if row["what"] == name)
            colour, marker = look_of(name if name != ALL else "gated")
            x, y = zip(*own, strict=True)
            axes.plot(
                x,
                y,
                color=colour,
                marker=marker,
                markersize=5,
                linewidth=1.4,
                linestyle="--" if name == ALL else "-",
                label=name,
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        _plain(axes.xaxis, lengths)
        dress(axes, title, "video tokens", unit)
    legend(axes)
    return figure


def _plain(axis: Any, ticks: Sequence[int]) -> None:
    """Ticks as plain numbers on a logarithmic axis."""
    axis.set_ticks(list(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.set_minor_formatter(NullFormatter())
