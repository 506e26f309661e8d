"""A study as one page (HTML) that works offline: front, history, importances, slices and parallel coordinates."""

from html import escape
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from nsa_lab.search.figures import Section, sections
from nsa_lab.search.picture import INK
from nsa_lab.search.rows import STATES, Outcome
from nsa_lab.search.view import number, words

STYLE = f"""
body {{ font: 16px/1.5 system-ui, sans-serif; color: {INK}; max-width: 1400px; margin: 2rem auto; padding: 0 1.5rem }}
h1, h2 {{ font-weight: 600; margin-bottom: 0 }}
p {{ margin: .25rem 0 1rem }}
.figures {{ display: grid; gap: 1rem }}
"""


def write_html(outcome: Outcome, file: Path) -> None:
    """Draw the study into `file`, plotly's script included; needs one complete trial."""
    name = escape(outcome.study)
    head = f'<meta charset="utf-8"><title>{name}</title><style>{STYLE}</style><script>{get_plotlyjs()}</script>'
    body = "\n".join([f"<h1>{name}</h1>", _summary(outcome), *map(_section, sections(outcome))])
    file.write_text(f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n', "utf-8")


def _summary(outcome: Outcome) -> str:
    best = outcome.front[0]
    counts = ", ".join(f"{outcome.count(state)} {state}" for state in STATES if outcome.count(state))
    values = ", ".join(f"{name} {number(value)}" for name, value in best.values.items())
    said = f"Recommended (ringed): {best.title}, {outcome.rule}. {values}; {words(best.params)}"
    return f"<p>{escape(counts)}. Hover a trial to read its design.<br>{escape(said)}</p>"


def _section(section: Section) -> str:
    figures = [f"<div>{_figure(figure)}</div>" for figure in section.figures if figure.data]
    columns = f"grid-template-columns: repeat({min(section.columns, len(figures))}, minmax(0, 1fr))"
    head = f"<h2>{section.title}</h2><p>{escape(section.text)}</p>"
    return f'{head}<div class="figures" style="{columns}">{"".join(figures)}</div>'


def _figure(figure: go.Figure) -> str:
    figure.update_layout(
        title=None,
        template="plotly_white",
        font_color=INK,
        hoverlabel_align="left",
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        margin={"l": 60, "r": 20, "t": 40, "b": 50},
    )
    figure.update_xaxes(exponentformat="e")
    return figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True})
