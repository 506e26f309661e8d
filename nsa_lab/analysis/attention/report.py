"""An analysis of a model's attention: tables, figures and what was left out, written into a folder."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nsa_lab.analysis.attention.cost_figures import draw_budget, draw_latency, draw_overlap
from nsa_lab.analysis.attention.figures import draw_gates, draw_similarity, draw_sinks
from nsa_lab.analysis.attention.gates import gate_rows, similarity_rows
from nsa_lab.analysis.attention.overlap import overlap_rows
from nsa_lab.analysis.attention.sinks import position_rows, sink_rows
from nsa_lab.analysis.attention.spent import budget_rows
from nsa_lab.analysis.attention.style import DPI
from nsa_lab.analysis.attention.watch import Findings, watch_clips
from nsa_lab.config import ExperimentConfig
from nsa_lab.data import VideoDataset, pack
from nsa_lab.errors import NsaLabError
from nsa_lab.files import write_csv, write_json, writing
from nsa_lab.model import VideoNSAForConditionalGeneration
from nsa_lab.origin import machine_facts
from nsa_lab.training.build import build_data

Rows = list[dict[str, Any]]
FIGURES: dict[str, Callable[[dict[str, Rows], str], Figure]] = {
    "gates": lambda tables, about: draw_gates(tables["gates"], about),
    "gate-similarity": lambda tables, about: draw_similarity(tables["gate-similarity"], about),
    "sinks": lambda tables, about: draw_sinks(tables["sinks"], tables["sink-positions"], about),
    "overlap": lambda tables, about: draw_overlap(tables["overlap"], about),
    "budget": lambda tables, about: draw_budget(tables["budget"], about),
    "latency": lambda tables, about: draw_latency(tables["latency"]),
}
"""By the table that they need."""


@dataclass
class Analysis:
    """tables: rows by name, those with something to tell. notes: what is not there, and why. about: of what it is."""

    tables: dict[str, Rows]
    notes: list[str]
    about: str
    facts: dict[str, Any]

    def figures(self) -> dict[str, Figure]:
        """A figure for each table that has one, by the table's name."""
        return {name: draw(self.tables, self.about) for name, draw in FIGURES.items() if name in self.tables}

    def write(self, folder: Path) -> list[Path]:
        """Write NAME.csv, NAME.png and about.json into `folder`; the files. Raises NsaLabError where that fails."""
        with writing(folder, "name another --output"):
            folder.mkdir(parents=True, exist_ok=True)
            return list(self._write(folder))

    def _write(self, folder: Path) -> Iterator[Path]:
        for name, figure in self.figures().items():
            figure.savefig(folder / f"{name}.png", dpi=DPI)
            yield folder / f"{name}.png"
        for name, rows in self.tables.items():
            columns = list(dict.fromkeys(column for row in rows for column in row))
            lines = ([row.get(column) for column in columns] for row in rows)
            write_csv(folder / f"{name}.csv", [columns, *lines])
            yield folder / f"{name}.csv"
        write_json(folder / "about.json", self.facts | {"about": self.about, "notes": self.notes})
        yield folder / "about.json"


def analyze(
    model: VideoNSAForConditionalGeneration, config: ExperimentConfig | None = None, *, clips: int = 4
) -> Analysis:
    """Gates, sinks, shared choices and budget of `model` over the first `clips` good validation samples of `config`.

    Without a config, of those that the model was loaded with. It runs where the model is, one clip at a time, in
    memory linear in its length. Definitions: nsa_lab/analysis/attention/sinks.py, overlap.py and spent.py. Raises
    NsaLabError where there is no config, or no clip.
    """
    settings = config or model.experiment
    if settings is None:
        raise NsaLabError("this model brings no data settings; load it with nsa_lab.load_model or pass a config")
    if clips < 1:
        raise NsaLabError(f"--clips {clips} is nothing to analyse; use 1 or more")
    settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, positions=model.config.positions))
    data = build_data(settings)[0].val
    data.tokens_per_second = model.config.vision_config.tokens_per_second
    chosen: list[str] = []
    findings = watch_clips(model, _batches(data, clips, chosen))
    tokens = findings.spent.lengths
    count = f"{len(chosen)} clip{'s' if len(chosen) > 1 else ''}"
    lengths = f"{min(tokens)} to {max(tokens)}" if min(tokens) < max(tokens) else str(tokens[0])
    facts = {"samples": chosen, "video_tokens": tokens, **machine_facts(settings.training.accelerator, None)}
    notes = [f"clips: {clips} were asked for, there are {len(chosen)}"] if len(chosen) < clips else []
    tables = _tables(findings)
    notes += _absent(findings, tables, model)
    return Analysis(tables, notes, f"{settings.name}, {count} of {lengths} video tokens.", facts)


def _batches(data: VideoDataset, count: int, chosen: list[str]) -> Iterator[dict[str, Any]]:
    """The first `count` samples that are good, packed alone; their ids join `chosen`."""
    for index in range(len(data)):
        if len(chosen) == count:
            return
        example = data[index]
        # Another sample stands in for one that is skipped, and has its own turn.
        if index in data.good():
            chosen.append(data.samples[index].id)
            yield pack([example])


def _tables(findings: Findings) -> dict[str, Rows]:
    tables = {
        "gates": gate_rows(findings.gates),
        "gate-similarity": similarity_rows(findings.gates),
        "sinks": sink_rows(findings.sinks),
        "sink-positions": position_rows(findings.sinks),
        "overlap": list(overlap_rows(findings.queries, findings.layers)),
        "budget": budget_rows(findings.spent),
    }
    return {name: rows for name, rows in tables.items() if rows}


def _absent(findings: Findings, tables: dict[str, Rows], model: VideoNSAForConditionalGeneration) -> Iterator[str]:
    """What there is none of, a line each."""
    if "gates" not in tables:
        yield "gates: there are none, since no layer has branches"
    elif "gate-similarity" not in tables:
        yield "gate-similarity: there is none, since layers have a single head"
    if "overlap" not in tables:
        yield "overlap: there is none, since no layer tells of blocks that it selects"
    if findings.silent:
        methods = sorted({model.attentions()[layer].design.method for layer in findings.silent})
        layers = ", ".join(map(str, sorted(findings.silent)))
        yield f"layers {layers} ({', '.join(methods)}) do not tell who reads which keys: not in sinks and overlap"
