"""The figures of gates and sinks; they show the rows of the tables and nothing else."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nsa_lab.analysis.attention.sinks import BINS, IQRS, MUCH
from nsa_lab.analysis.attention.style import at_layers, dress, framed, in_order, legend, look_of

Rows = Sequence[dict[str, Any]]
NOTHING = "#c9ced4"
MATRICES = 4
"""Layers whose similarities are drawn head by head; the table has all."""


def draw_gates(rows: Rows, about: str) -> Figure:
    """The mean gate by layer, and by layer and head for each branch."""
    branches, layers = in_order({row["branch"] for row in rows}), _layers(rows)
    size = (3.3 * (1 + len(branches)), 3.2 + 0.09 * max(0, len(layers) - 8))
    caption = (
        "Left: the mean over tokens and heads; the bar spans plus and minus one standard deviation over both. "
        f"Right: the mean over tokens for each head. {about}"
    )
    figure = framed("Gates: how much of each branch is taken", caption, size)
    first, *others = figure.subplots(1, 1 + len(branches), squeeze=False)[0]
    for place, branch in enumerate(branches):
        own = [[row for row in rows if (row["layer"], row["branch"]) == (layer, branch)] for layer in layers]
        means = [float(np.mean([row["mean"] for row in heads])) if heads else np.nan for heads in own]
        spread = [_pooled_deviation(heads) for heads in own]
        x = np.array(layers) + 0.12 * (place - (len(branches) - 1) / 2)
        colour, marker = look_of(branch)
        first.errorbar(
            x, means, spread, color=colour, marker=marker, markersize=5, linewidth=1.4, elinewidth=0.8, label=branch
        )
        _heads(others[place], own, branch, layers)
    top = max(1.0, first.get_ylim()[1])
    first.set_ylim(min(0.0, first.get_ylim()[0]), top)
    dress(first, "mean of all heads", "layer", "gate")
    at_layers(first, layers)
    legend(first)
    figure.colorbar(others[-1].images[0], ax=others, shrink=0.85).ax.tick_params(labelsize=8)
    return figure


def _pooled_deviation(heads: Rows) -> float:
    """The standard deviation over tokens and heads, from each head's mean and deviation."""
    if not heads:
        return float("nan")
    within = np.mean([row["deviation"] ** 2 for row in heads])
    return float(np.sqrt(within + np.var([row["mean"] for row in heads])))


def _heads(axes: Axes, own: Sequence[Rows], branch: str, layers: Sequence[int]) -> None:
    heads = 1 + max(row["head"] for line in own for row in line)
    table = np.full((len(layers), heads), np.nan)
    for line, found in zip(table, own, strict=True):
        for row in found:
            line[row["head"]] = row["mean"]
    axes.imshow(table, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    dress(axes, branch, "head", "layer")
    axes.grid(False)
    axes.set_facecolor(NOTHING)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_yticks(range(len(layers)), list(map(str, layers)))
    _write(axes, table, dark_below=0.55)


def _write(axes: Axes, table: np.ndarray, dark_below: float) -> None:
    """The numbers into the cells of a small table."""
    if table.size > 64:
        return
    for (row, column), value in np.ndenumerate(table):
        ink = "white" if value < dark_below else "black"
        axes.text(column, row, "–" if np.isnan(value) else f"{value:.2f}", ha="center", va="center", color=ink, size=8)


def draw_similarity(rows: Rows, about: str) -> Figure:
    """How alike the heads of a layer gate: the mean correlation by layer, and head against head in a few layers."""
    branches, layers = in_order({row["branch"] for row in rows}), _layers(rows)
    shown = [layers[i] for i in sorted({round(x) for x in np.linspace(0, len(layers) - 1, MATRICES)})]
    caption = (
        "Pearson's correlation over tokens between the gates of two heads of a layer: 1, they open and close together. "
        f"Left: the mean over pairs of heads. A gate that does not vary has none (grey). {about}"
    )
    size = (3.4 + 1.9 * len(shown), 1.9 * len(branches) + 0.3)
    figure = framed("Gates: similarity between heads", caption, size)
    axes: dict[str, Axes] = figure.subplot_mosaic(
        [["mean", *(f"{branch}/{layer}" for layer in shown)] for branch in branches],
        width_ratios=[1.7] + [1] * len(shown),
    )
    for branch in branches:
        means = [_mean_correlation(rows, layer, branch) for layer in layers]
        colour, marker = look_of(branch)
        axes["mean"].plot(layers, means, color=colour, marker=marker, markersize=5, linewidth=1.4, label=branch)
        for layer in shown:
            picture = _matrix(axes[f"{branch}/{layer}"], rows, layer, branch)
    axes["mean"].set_ylim(-1.05, 1.5)
    axes["mean"].set_yticks(np.linspace(-1, 1, 9))
    dress(axes["mean"], "mean over pairs of heads", "layer", "correlation")
    at_layers(axes["mean"], layers)
    legend(axes["mean"])
    matrices = [own for name, own in axes.items() if name != "mean"]
    figure.colorbar(picture, ax=matrices, shrink=0.85).ax.tick_params(labelsize=8)
    return figure


def _mean_correlation(rows: Rows, layer: int, branch: str) -> float:
    found = np.array([row["correlation"] for row in rows if (row["layer"], row["branch"]) == (layer, branch)])
    found = found[~np.isnan(found)]
    return float(found.mean()) if len(found) else float("nan")


def _matrix(axes: Axes, rows: Rows, layer: int, branch: str) -> Any:
    own = [row for row in rows if (row["layer"], row["branch"]) == (layer, branch)]
    heads = 1 + max(row["other"] for row in rows)
    table = np.full((heads, heads), np.nan)
    for row in own:
        table[row["head"], row["other"]] = table[row["other"], row["head"]] = row["correlation"]
    np.fill_diagonal(table, np.where(np.isnan(table).all(1), np.nan, 1.0))
    picture = axes.imshow(table, vmin=-1, vmax=1, cmap="PuOr")
    dress(axes, f"{branch}, layer {layer}", "", "")
    axes.grid(False)
    axes.set_facecolor(NOTHING)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4, integer=True))
    axes.title.set_fontsize(8)
    return picture


def draw_sinks(rows: Rows, positions: Rows, about: str) -> Figure:
    """The share of sinks by layer and by position, and how often each of the two conditions is met."""
    names, layers = in_order({row["branch"] for row in rows}), _layers(rows)
    caption = (
        "A sink: a key whose received attention, averaged over the video queries that the branch lets read it, exceeds"
        f" {MUCH} and whose value norm is light, below median - {IQRS:g} IQR of the clip's keys (of one key/value"
        " head); counted for each query head. Compression counts pooled keys; gated: the branches' weights times their"
        f" gates, averaged, like dense, over all queries at or after the key. {about}"
    )
    figure = framed("Attention sinks", caption, (13, 3.4))
    by_layer, by_place, conditions = figure.subplots(1, 3, width_ratios=[1, 1, 1.1])
    for place, name in enumerate(names):
        colour, marker = look_of(name)
        own = {row["layer"]: row for row in rows if row["branch"] == name}
        shift = 0.06 * (place - (len(names) - 1) / 2)
        ratios = [100 * own[layer]["ratio"] if layer in own else np.nan for layer in layers]
        by_layer.plot(
            np.array(layers) + shift, ratios, color=colour, marker=marker, markersize=5, linewidth=1.4, label=name
        )
        by_place.step(*_by_place(positions, name), where="mid", color=colour, linewidth=1.6, label=name)
    _conditions(conditions, rows, names)
    for axes in (by_layer, by_place):
        axes.set_ylim(0, max(1.0, 1.05 * axes.get_ylim()[1]))
    dress(by_layer, "by layer", "layer", "sinks, % of keys")
    dress(by_place, "by position, all layers", "place in the clip", "sinks, % of keys there")
    at_layers(by_layer, layers)
    legend(by_layer)
    return figure


def _by_place(positions: Rows, name: str) -> tuple[list[float], list[float]]:
    keys, sinks = np.zeros(BINS), np.zeros(BINS)
    for row in positions:
        if row["branch"] == name:
            part = round(row["begin"] * BINS)
            keys[part] += row["keys"]
            sinks[part] += row["sinks"]
    share = [100 * s / k if k else float("nan") for s, k in zip(sinks, keys, strict=True)]
    return [(part + 0.5) / BINS for part in range(BINS)], share


def _conditions(axes: Axes, rows: Rows, names: Sequence[str]) -> None:
    kinds = {"attended": f"attention > {MUCH}", "light": "light value", "sinks": "both: sink"}
    for place, name in enumerate(names):
        own = [row for row in rows if row["branch"] == name]
        keys = sum(row["keys"] for row in own)
        for offset, (kind, hatch) in enumerate(zip(kinds, ("", "///", "..."), strict=True)):
            share = 100 * sum(row[kind] for row in own) / keys if keys else 0.0
            y = place + 0.27 * (offset - 1)
            axes.barh(y, share, 0.25, color=look_of(name)[0], hatch=hatch, edgecolor="white", linewidth=0)
            axes.text(share + 1, y, f"{kinds[kind]} {share:.1f}", size=7, va="center")
    dress(axes, "each condition, all layers", "% of keys", "")
    axes.set(yticks=range(len(names)), yticklabels=names, xlim=(0, 145), xticks=range(0, 101, 25))
    axes.invert_yaxis()


def _layers(rows: Rows) -> list[int]:
    return sorted({row["layer"] for row in rows})
