"""`nsa-lab compare` and `nsa-lab report`: designs with the same seeds, and what the differences are worth."""

from pathlib import Path
from typing import Annotated

import typer

File = Annotated[
    Path,
    typer.Argument(help="Python file with EXPERIMENTS, VARIANTS, REFERENCES, METRICS and SEEDS.", metavar="FILE"),
]


def compare(
    file: File,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings of every training.", metavar="[KEY=VALUE]...")
    ] = None,
    variants: Annotated[str, typer.Option(help="Designs to train, by commas; by default all.")] = "",
    seeds: Annotated[int | None, typer.Option(help="How many of the file's seeds; by default all.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that train at the same time.", min=1)] = 1,
    minutes: Annotated[float | None, typer.Option(help="Start no training after this long.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of runs.csv and tables; by default {output.dir}/comparisons/NAME.")
    ] = None,
) -> None:
    """Train designs on the same tasks with the same seeds; print means, intervals and paired tests.

    What runs.csv in the output folder holds already is not trained again; the same command goes on after a kill.
    In MLflow the runs stand under comparison-NAME. Baselines are designs like others, in VARIANTS and REFERENCES:
    {"dense": {"attention.method": "dense"}, "blind": {"data.blind": True}}.

    `nsa-lab compare experiments/partition/compare.py --workers 16`

    `nsa-lab compare experiments/partition/compare.py --variants uniform,frame --seeds 5 training.steps=100`
    """
    from nsa_lab.comparison import compare as run

    run(
        file,
        overrides=overrides or (),
        variants=[name for name in variants.split(",") if name],
        seeds=seeds,
        workers=workers,
        minutes=minutes,
        out=out,
    )


def report(
    file: File,
    rows: Annotated[list[Path], typer.Argument(help="The runs.csv of one or more comparisons.", metavar="ROWS...")],
    out: Annotated[Path | None, typer.Option(help="The file to write; by default RESULTS.md beside ROWS.")] = None,
) -> None:
    """Write means, intervals, tests and origin of a comparison's rows as Markdown, a section for each file.

    Where --out ends with .tex it is the tables in LaTeX (booktabs), without findings and origin.

    `nsa-lab report experiments/partition/compare.py runs/comparisons/partition/runs.csv`

    Write what you conclude into FINDINGS.md beside runs.csv: the section of these rows opens with it.
    """
    from nsa_lab.comparison import report as write

    typer.echo(write(file, rows, out))
