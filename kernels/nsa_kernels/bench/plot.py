"""Time against T from a CSV: our layer and the baselines, forward, and forward + backward."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nsa_kernels.bench.records import Row, latest
from nsa_kernels.bench.report import BASELINES, label

_DASHES = {"random": "-", "video": "--"}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write a PNG with two log-log panels. Raises ValueError where no row of the layer or a baseline has a time."""
    series = _series(rows)
    if not series:
        raise ValueError("no row of the layer or a baseline has a time")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(name for _, name, _ in series))
    colors = {name: f"C{i}" for i, name in enumerate(names)}
    figure, panels = pyplot.subplots(1, 2, figsize=(13, 5.5), sharex=True)
    for axes, direction in zip(panels, ("forward", "forward+backward"), strict=True):
        for (where, name, inputs), points in series.items():
            if where == direction:
                _line(
                    axes,
                    sorted(points),
                    f"{name}, {inputs}" if inputs else name,
                    colors[name],
                    _DASHES.get(inputs, "-"),
                )
        _dress(axes, direction, sorted({t for points in series.values() for t, _ in points}))
    handles = {text: h for axes in panels for h, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle("; ".join(dict.fromkeys(f"{r.origin.gpu}, commit {r.origin.commit[:9]}" for r in rows)), fontsize=9)
    rows_of_legend = -(-len(handles) // 4)
    figure.tight_layout(rect=(0, 0.03 + 0.035 * rows_of_legend, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _series(rows: Sequence[Row]) -> dict[tuple[str, str, str], list[tuple[int, float]]]:
    """(T, milliseconds) by direction, name and kind of inputs (empty where it does not matter)."""
    series: dict[tuple[str, str, str], list[tuple[int, float]]] = {}
    for row in latest(rows):
        case, time = row.case, row.result.milliseconds
        if time is not None and case.op in ("layer", *BASELINES):
            inputs = case.inputs if case.block_size else ""
            series.setdefault((case.direction, label(case), inputs), []).append((case.tokens, time))
    return series


def _line(axes: Any, points: list[tuple[int, float]], text: str, color: str, dashes: str) -> None:
    lengths, times = zip(*points, strict=True)
    axes.plot(lengths, times, dashes, color=color, marker="o", markersize=3, label=text)


def _dress(axes: Any, direction: str, lengths: list[int]) -> None:
    axes.set(
        xscale="log", yscale="log", title=direction.replace("+", " + "), xlabel="T (tokens)", ylabel="milliseconds"
    )
    axes.set_xticks(lengths, [f"{t // 1024}K" if t % 1024 == 0 else str(t) for t in lengths])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
