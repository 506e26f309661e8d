"""A run's pictures: loss, accuracy and gates over steps, the last gates by layer and branch, and the partition."""

import re
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from nsa_lab.analysis.partition import draw_partition, is_adaptive, typical_layers, watch
from nsa_lab.training import Trained
from nsa_lab.training.directory import Series, read_series

GATE, MEAN_GATE = re.compile(r"gate/layer(\d+)/(\w+)"), re.compile(r"gate/\w+")


def draw_run(trained: Trained) -> list[Path]:
    """Draw all pictures of a run that just ended, and return the files."""
    home = trained.home
    return draw_pictures(home.metrics, home.pictures) + draw_partitions(trained, home.pictures / "partition")


def draw_pictures(metrics: Path, folder: Path) -> list[Path]:
    """Write curves.png and, where gates were measured, gates.png into `folder`, out of a run's metrics.jsonl."""
    matplotlib.use("Agg")
    series = read_series(metrics)
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"curves.png": _curves(series)}
    if any(GATE.fullmatch(name) for name in series):
        figures["gates.png"] = _gates(series)
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=120)
    return [folder / name for name in figures]


def draw_partitions(trained: Trained, folder: Path) -> list[Path]:
    """Write the partition of the first good validation sample into `folder`; nothing where all layers are `uniform`."""
    config, data = trained.config, trained.data.val
    if not is_adaptive(config, trained.trained.model.config.text_config.num_hidden_layers):
        return []
    model = trained.module.model  # of several processes: put together from their checkpoint, for this alone
    # After the training Lightning leaves the model on the CPU.
    model.to(trained.trainer.strategy.root_device)
    sample = data.good()[0]
    with trained.trainer.precision_plugin.forward_context():
        video, seen = watch(model, config, data, sample, None)
    layers = typical_layers(seen)
    return [file for layer in layers for file in draw_partition(config, sample, video, seen, layer, folder)]


def _curves(series: Series) -> Figure:
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = {
        "loss": [name for name in series if name.endswith("/loss")],
        "accuracy": [name for name in series if "/accuracy" in name],
        "gate (mean over layers, heads and tokens)": [name for name in series if MEAN_GATE.fullmatch(name)],
    }
    for axes, (title, names) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for name in sorted(names):
            steps, values = zip(*sorted(series[name].items()), strict=True)
            axes.plot(steps, values, marker=".", label=name.removeprefix("gate/"))
        axes.set(title=title, xlabel="step")
        if title != "loss":
            axes.set_ylim(-0.02, 1.02)
        if 0 < len(names) <= 12:
            axes.legend(fontsize=7)
    return figure


def _gates(series: Series) -> Figure:
    found = [(GATE.fullmatch(name), values) for name, values in series.items()]
    last = {(int(m[1]), m[2]): values[max(values)] for m, values in found if m}
    layers, branches = sorted({layer for layer, _ in last}), sorted({branch for _, branch in last})
    table = [[last.get((layer, branch), float("nan")) for branch in branches] for layer in layers]
    figure = Figure(figsize=(1.5 + 1.3 * len(branches), 1.2 + 0.4 * len(layers)), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(table, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set(xticks=range(len(branches)), yticks=range(len(layers)), ylabel="layer", title="mean gate")
    axes.set_xticklabels(branches)
    axes.set_yticklabels(list(map(str, layers)))
    for row, values in enumerate(table):
        for column, value in enumerate(values):
            axes.text(
                column,
                row,
                f"{value:.2f}",
                ha="center",
                va="center",
                color="white" if value < 0.6 else "black",
            )
    figure.colorbar(picture)
    return figure
