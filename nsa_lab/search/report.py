"""What a sweep leaves behind: the Pareto set as a table, pictures, a CSV, and configs that can be trained."""

import shutil
import textwrap
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nsa_lab.config import to_yaml
from nsa_lab.files import locked
from nsa_lab.search.rows import STATES, Outcome, Row, write_csv
from nsa_lab.search.spec import design
from nsa_lab.search.view import duration, number, short_names


def write_report(outcome: Outcome, directory: Path) -> list[Path]:
    """Write table.csv and, once a trial is complete, the pictures and YAML files; returns their paths.

    One after another where sweeps with the same folder end together.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory / "report.lock"):
        return _write(outcome, directory)


def _write(outcome: Outcome, directory: Path) -> list[Path]:
    table = directory / "table.csv"
    write_csv(outcome, table)
    if outcome.best is None:
        return [table]
    # Imported here: a sweep's workers never draw.
    from nsa_lab.search.page import write_html
    from nsa_lab.search.picture import write_png

    png, html = directory / "pareto.png", directory / "pareto.html"
    write_png(outcome, png)
    write_html(outcome, html)
    return [table, png, html, *_write_configs(outcome, directory)]


def drop_checkpoints(outcome: Outcome) -> None:
    """Remove the checkpoints of complete trials that are not on the front; what they measured stays."""
    for row in outcome.rows:
        if row.state == "complete" and not row.reference and row not in outcome.front:
            for folder in Path(row.directory).glob("**/checkpoints"):
                shutil.rmtree(folder, ignore_errors=True)


def print_report(outcome: Outcome, directory: Path, console: Console) -> None:
    """The counts, the Pareto set, the rule behind the recommendation, and where the files are."""
    counts = ", ".join(f"{outcome.count(state)} {state}" for state in STATES if outcome.count(state))
    console.print(f"study {outcome.study}: {counts or 'no trials'}", highlight=False, markup=False)
    if outcome.best is None:
        console.print("no complete trial yet; reasons are in table.csv", highlight=False)
        return
    console.print(_table(outcome))
    console.print(f"recommended: {outcome.best.title} ({outcome.rule})", highlight=False, markup=False)
    if above := [row.title for row in outcome.rows if (row.of_dense or 0) > 1]:
        console.print(f"! more keys than dense attention: {', '.join(above)}", highlight=False, markup=False)
    files = f"{directory}/: best.yaml pareto/ pareto.png pareto.html table.csv"
    console.print(files, highlight=False, markup=False, soft_wrap=True)


def _table(outcome: Outcome) -> Table:
    params = list(dict.fromkeys(name for row in outcome.front for name in row.params))
    short = short_names(params)
    title = "Pareto set" if len(outcome.objectives) > 1 else "best trial"
    table = Table(title=title, title_justify="left")
    table.add_column("trial", justify="right")
    for name in outcome.objectives:
        table.add_column(_broken(outcome.label(name)), justify="right")
    ratios = any(row.of_dense is not None for row in outcome.front)
    if ratios:
        table.add_column("of dense", justify="right")
    table.add_column("time", justify="right")
    for name in params:
        table.add_column(_broken(short[name]))
    beaten = [row for row in outcome.references if row not in outcome.front]
    for row in [*outcome.front, *beaten]:
        mark = "*" if row is outcome.best else " "
        values = [_value(row, name) for name in outcome.objectives]
        cells = [str(row.params.get(name, "")) for name in params]
        ratio = [_of_dense(row.of_dense)] if ratios else []
        table.add_row(f"{mark}{row.label}", *values, *ratio, duration(row.seconds), *cells)
    return table


def _value(row: Row, name: str) -> str:
    return number(row.values[name]) + (f" ± {row.half[name]:.2g}" if name in row.half else "")


def _of_dense(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.0%}{'!' if ratio > 1 else ''}"


def _broken(name: str) -> str:
    """A dotted or slashed name on several lines, for the head of a narrow column."""
    return name.replace("/", "/\n").replace(".", ".\n")


def _write_configs(outcome: Outcome, directory: Path) -> list[Path]:
    folder = directory / "pareto"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.yaml"):
        old.unlink()
    for row in outcome.front:
        (folder / f"{row.name}.yaml").write_text(_config_text(outcome, row, "One of the Pareto set"))
    best = directory / "best.yaml"
    assert outcome.best is not None
    best.write_text(_config_text(outcome, outcome.best, f"Recommended: {outcome.rule}"))
    return [best, folder]


def _config_text(outcome: Outcome, row: Row, about: str) -> str:
    values = ", ".join(f"{name} = {number(value)}" for name, value in row.values.items())
    notes = [
        f"{row.title.capitalize()} of study {outcome.study}: {values}.",
        f"{about}.",
        f"Trained in {row.directory}",
    ]
    lines = [line for note in notes for line in textwrap.wrap(note, 100, break_long_words=False)]
    config = design(row.base, row.overrides, f"{outcome.study}-{row.name}")
    return "".join(f"# {line}\n" for line in lines) + to_yaml(config)
