"""`nsa-lab runs`: list the runs of a folder, and compare two."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from nsa_lab.cli.group import ListGroup
from nsa_lab.errors import NsaLabError, nearest

runs_app = typer.Typer(
    cls=ListGroup,
    help="""List runs, and compare two: `runs [DIR]` shows what a folder holds, `runs diff A B` what two differ in.

    `nsa-lab runs`

    `nsa-lab runs runs/studies/demo --sort val/loss`

    `nsa-lab runs --csv > runs.csv`

    `nsa-lab runs diff runs/smoke-0123456789ab runs/dense-ba9876543210`
    """,
)


@runs_app.command("list")
def list_(
    directory: Annotated[Path, typer.Argument(help="Folder of runs, at any depth.", metavar="DIR")] = Path("runs"),
    sort: Annotated[str, typer.Option(help="Column to sort by, ascending; by default the last begun first.")] = "",
    csv: Annotated[bool, typer.Option("--csv", help="Print a CSV with every val/* metric.")] = False,
) -> None:
    """List the runs in DIR: design, state, last step, validation metrics, keys per query, hash, and when it began.

    States: finished, stopped (ended early by its sweep), running, cut off (killed; the same command goes on),
    failed, killed, damaged.

    `nsa-lab runs`

    `nsa-lab runs runs/studies/demo --sort val/loss`

    `nsa-lab runs --csv > runs.csv`
    """
    from nsa_lab.analysis.runs import list_runs

    rows = list_runs(directory)
    values = [row.values for row in rows]
    columns = list(
        dict.fromkeys([*(name for row in values for name in row if name not in ("hash", "when")), "hash", "when"])
    )
    if sort:
        if sort not in columns:
            raise NsaLabError(f"--sort {sort!r} is no column; {nearest(sort, columns)}known: {', '.join(columns)}")
        values.sort(key=lambda row: (row.get(sort) is None, row.get(sort)))
    _print_csv(columns, values) if csv else _print_table(columns, values)
    for row in rows:
        if row.fault:
            typer.echo(f"{row.name}: {row.fault}", err=True)


@runs_app.command()
def diff(
    a: Annotated[Path, typer.Argument(help="Folder of a run.", metavar="A")],
    b: Annotated[Path, typer.Argument(help="Folder of another.", metavar="B")],
) -> None:
    """Show the settings that differ between two runs, and their metrics side by side.

    `nsa-lab runs diff runs/smoke-0123456789ab runs/dense-ba9876543210`
    """
    from nsa_lab.analysis.runs import differing_settings, metrics_of
    from nsa_lab.cli.output import HIDDEN, format_metric

    metrics = [metrics_of(a), metrics_of(b)]
    settings = [[key, *map(str, pair)] for key, pair in differing_settings(a, b).items()]
    _print_lines(["setting", "A", "B"], settings or [["none differ", "", ""]])
    names = sorted(name for name in {*metrics[0], *metrics[1]} if not name.startswith(HIDDEN))
    cells = [[name, *(format_metric(name, of[name]) if name in of else "" for of in metrics)] for name in names]
    typer.echo()
    _print_lines(["metric", "A", "B"], cells)


def _print_csv(columns: Sequence[str], values: Sequence[dict[str, Any]]) -> None:
    import csv
    import sys

    writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(values)


def _print_table(columns: Sequence[str], values: Sequence[dict[str, Any]]) -> None:
    from nsa_lab.runner.view import number

    # The accuracies of single tasks are for the CSV.
    shown = [name for name in columns if name.count("/") < 2]
    cells = [
        [number(value) if isinstance(value := row.get(name), float) else str(value or "") for name in shown]
        for row in values
    ]
    _print_lines([name.rpartition("/")[2].replace("_", " ") if "budget/" in name else name for name in shown], cells)


def _print_lines(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from nsa_lab.runner.view import make_console

    table = Table(*heads, box=None)
    for line in lines:
        table.add_row(*map(Text, line))
    make_console(300).print(table)
