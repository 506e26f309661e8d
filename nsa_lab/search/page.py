"""The Pareto set as a page (HTML) that works offline: hover a trial to read its design."""

import itertools
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from nsa_lab.search.picture import FRONT, INK, OTHER
from nsa_lab.search.rows import Outcome, Row
from nsa_lab.search.view import number


def write_html(outcome: Outcome, file: Path) -> None:
    """Draw the study into `file`, plotly's script included; needs one complete trial."""
    count = len(outcome.objectives)
    figure = {1: _history, 2: _plane}.get(count, _matrix)(outcome)
    figure.update_layout(
        title=f"{outcome.study}: recommended is trial {outcome.front[0].number} ({outcome.rule})",
        template="plotly_white",
        font_color=INK,
        hoverlabel_align="left",
    )
    figure.write_html(file, include_plotlyjs=True, config={"displaylogo": False})


def _plane(outcome: Outcome) -> go.Figure:
    y, x = outcome.objectives
    front = sorted(outcome.front, key=lambda row: row.values[x])
    shape = "hv" if outcome.objectives[x] == "minimize" else "vh"
    figure = go.Figure()
    figure.add_trace(_points(_others(outcome), x, y, "trial", {"color": OTHER, "size": 8}))
    marks = {"color": FRONT, "size": 11, "line": {"color": "white", "width": 1}}
    line = _points(front, x, y, "Pareto set", marks)
    line.update(mode="lines+markers+text", line={"shape": shape, "color": FRONT}, textposition="top right")
    figure.add_trace(line)
    return figure.update_layout(xaxis_title=_axis(outcome, x), yaxis_title=_axis(outcome, y))


def _history(outcome: Outcome) -> go.Figure:
    (name, direction), = outcome.objectives.items()  # fmt: skip
    complete = [row for row in outcome.rows if row.state == "complete"]
    better = max if direction == "maximize" else min
    best = list(itertools.accumulate((row.values[name] for row in complete), better))
    numbers = [row.number for row in complete]
    figure = go.Figure()
    figure.add_trace(_points(complete, None, name, "trial", {"color": OTHER, "size": 8}))
    line = {"shape": "hv", "color": FRONT}
    figure.add_trace(go.Scatter(x=numbers, y=best, mode="lines", name="best so far", line=line, hoverinfo="skip"))
    return figure.update_layout(xaxis_title="trial", yaxis_title=_axis(outcome, name))


def _matrix(outcome: Outcome) -> go.Figure:
    figure = go.Figure()
    groups = (("trial", _others(outcome), OTHER, 6), ("Pareto set", outcome.front, FRONT, 9))
    for name, rows, colour, size in groups:
        dimensions = [{"label": o, "values": [row.values[o] for row in rows]} for o in outcome.objectives]
        text = [_hover(row) for row in rows]
        marker = {"color": colour, "size": size}
        figure.add_trace(go.Splom(dimensions=dimensions, text=text, name=name, marker=marker, diagonal_visible=False))
    return figure.update_layout(height=260 * len(outcome.objectives))


def _points(rows: list[Row], x: str | None, y: str, name: str, marker: dict[str, Any]) -> go.Scatter:
    return go.Scatter(
        x=[row.values[x] if x else row.number for row in rows],
        y=[row.values[y] for row in rows],
        mode="markers",
        name=name,
        marker=marker,
        text=[str(row.number) for row in rows],
        hovertext=[_hover(row) for row in rows],
        hoverinfo="text",
    )


def _hover(row: Row) -> str:
    values = [f"{name}: {number(value)}" for name, value in row.values.items()]
    params = [f"{name} = {value}" for name, value in row.params.items()]
    return "<br>".join([f"<b>trial {row.number}</b>", *values, "", *params])


def _others(outcome: Outcome) -> list[Row]:
    front = {row.number for row in outcome.front}
    return [row for row in outcome.rows if row.state == "complete" and row.number not in front]


def _axis(outcome: Outcome, name: str) -> str:
    return f"{name} ({outcome.objectives[name]})"
