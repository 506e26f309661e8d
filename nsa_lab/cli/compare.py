"""`nsa-lab compare` and `nsa-lab report`: designs with the same seeds, and what the differences are worth."""

from pathlib import Path
from typing import Annotated

import typer

from nsa_lab.cli.values import Minutes, names
from nsa_lab.errors import NsaLabError

File = Annotated[
    Path,
    typer.Argument(help="Python file with EXPERIMENTS, VARIANTS, REFERENCES, METRICS and SEEDS.", metavar="FILE"),
]


def compare(
    file: File,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings of every training.", metavar="KEY=VALUE")
    ] = None,
    variants: Annotated[str | None, typer.Option(help="Designs to train, by commas; by default all.")] = None,
    seeds: Annotated[int | None, typer.Option(help="How many of the file's seeds; by default all.", min=1)] = None,
    workers: Annotated[int, typer.Option(help="Processes that train at the same time.", min=1)] = 1,
    minutes: Minutes = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of runs.csv and tables; by default {output.dir}/comparisons/NAME.")
    ] = None,
) -> None:
    """Train designs on the same tasks with the same seeds; print means, intervals and paired tests.

    Fewer than 3 seeds have no interval. What runs.csv in the output folder holds already is not trained again; the same
    command goes on after a kill. In MLflow the runs stand under comparison-NAME. Baselines are designs like others, in
    VARIANTS and REFERENCES: {"dense": {"attention.method": "dense"}, "blind": {"data.blind": True}}.

    `nsa-lab compare experiments/partition/compare.py --workers 16`

    `nsa-lab compare experiments/partition/compare.py --variants uniform,frame --seeds 5 training.steps=100`
    """
    from nsa_lab.comparison import compare as run

    run(
        file,
        overrides=overrides or (),
        variants=names(variants, "--variants"),
        seeds=seeds,
        workers=workers,
        minutes=minutes,
        out=out,
    )


def report(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folders with comparisons, ablations, studies and runs, CSVs of `bench --layer --methods`; or a"
            " comparison's FILE and its runs.csv.",
            metavar="FOLDER|FILE",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The file to write; its ending says what: .html, .md or, of a FILE, .tex.")
    ] = None,
) -> None:
    """Write one page on all that was found: tables, pictures, and where each number is from.

    A page (report.html) opens offline, on a phone and in print. With --out RESULTS.md it is the tables in Markdown.
    What cannot be read is a line there and on stderr (exit code 2); the rest is written.

    `nsa-lab report runs`

    `nsa-lab report experiments/results --out results.html`

    `nsa-lab report runs/comparisons/baselines prefill.csv --out baselines.html`

    Of a comparison's own FILE and the rows of several machines it writes RESULTS.md beside them, each section opening
    with the FINDINGS.md beside its rows; where --out ends with .tex the tables alone, in LaTeX (booktabs):

    `nsa-lab report experiments/partition/compare.py runs/comparisons/partition/runs.csv`
    """
    from nsa_lab.comparison import is_comparison_file
    from nsa_lab.comparison import report as write

    found = sources or [Path("runs")]
    if is_comparison_file(found[0]):
        if not found[1:]:
            raise NsaLabError(f"{found[0]}: name its runs.csv too, as in `nsa-lab report {found[0]} ROWS...`")
        typer.echo(write(found[0], found[1:], out))
        return
    from nsa_lab.report import write_page, write_results

    out = out or Path("report.html")
    writers = {".html": write_page, ".md": write_results}
    if out.suffix not in writers:
        raise NsaLabError(f"--out {out}: a report of folders ends with {' or '.join(writers)}")
    typer.echo(writers[out.suffix](found, out))
