"""`nsa-lab ablate`: named variants over one experiment, from a YAML."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from nsa_lab.cli.values import Minutes, names


def ablate(
    file: Annotated[
        Path, typer.Argument(help="YAML of an ablation; README (Ablations) explains its keys.", metavar="FILE")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings of every training.", metavar="KEY=VALUE")
    ] = None,
    preset: Annotated[
        str, typer.Option(help="A preset of the file, such as quick; it has an output folder of its own.")
    ] = "",
    at: Annotated[
        Literal["training", "inference", "both"] | None,
        typer.Option(
            help="Train each variant, or validate each with the weights of one, or both; by default as the file says."
        ),
    ] = None,
    variants: Annotated[str | None, typer.Option(help="Variants to do, by commas; by default all.")] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds, from 0; by default the file's.", min=1)] = None,
    workers: Annotated[int, typer.Option(help="Processes that train at the same time.", min=1)] = 1,
    minutes: Minutes = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of runs.csv and tables; by default {output.dir}/comparisons/NAME.")
    ] = None,
) -> None:
    """Train the variants of a design with several seeds, or switch parts off at inference; print the paper's table.

    A check mark for each branch that a variant has, a column for each task, means with 95% intervals and paired tests
    (fewer than 3 seeds have none): on the terminal, and as table.md, table.tex and table.csv in the output folder. The
    same command goes on after a kill and skips what is done. In MLflow the runs stand under comparison-NAME.

    A file may hold base, settings, start, seeds, at, weights, converted, readings, subsets, variants, references and
    presets; the README's section Ablations says what each means, and has the smallest file that runs.

    `nsa-lab ablate experiments/ablations/branches.yaml --preset quick --workers 2`

    `nsa-lab ablate experiments/ablations/branches.yaml --at both --seeds 5 --workers 16`
    """
    from nsa_lab.comparison import compare, read_comparison

    compare(
        read_comparison(file, preset, at or "", seeds),
        overrides=overrides or (),
        variants=names(variants, "--variants"),
        workers=workers,
        minutes=minutes,
        out=out,
    )
