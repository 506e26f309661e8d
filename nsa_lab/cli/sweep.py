"""`nsa-lab sweep`: run a sweep file, show a study."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from nsa_lab.cli.group import DefaultGroup
from nsa_lab.cli.values import output_of


class SweepGroup(DefaultGroup):
    default = "run"


sweep_app = typer.Typer(
    cls=SweepGroup,
    no_args_is_help=True,
    help="""Search designs with Optuna: `sweep FILE` runs a sweep file, `sweep show STUDY` prints what it found.

    `nsa-lab sweep sweeps/block_budget.py --trials 40 --workers 2`

    `nsa-lab sweep show block_budget`
    """,
)

Storage = Annotated[
    str | None,
    typer.Option(
        help="Optuna storage URL; by default SQLite in the output folder. One with a password is better kept here:",
        metavar="URL",
        envvar="NSA_LAB_STORAGE",
        show_envvar=True,
    ),
]


@sweep_app.command()
def run(
    file: Annotated[Path, typer.Argument(help="Python file with BASE, OBJECTIVES and suggest(trial).", metavar="FILE")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings of every trial.", metavar="KEY=VALUE")] = None,
    trials: Annotated[
        int | None, typer.Option(help="Trials to add; by default the file's TRIALS; 0: unfinished ones alone.", min=0)
    ] = None,
    total: Annotated[
        int | None, typer.Option(help="Instead: trials of the study, counted over all machines that join it.", min=1)
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that train at the same time.", min=1)] = 1,
    storage: Storage = None,
    study: Annotated[str | None, typer.Option(help="Name of the study; by default the file's.")] = None,
    seeds: Annotated[int, typer.Option(help="Trainings of each design; the objectives are their means.", min=1)] = 1,
    keep_checkpoints: Annotated[
        Literal["front", "all"], typer.Option(help="Whose checkpoints stay when the sweep ends.")
    ] = "front",
) -> None:
    """Run more trials of a sweep file; trials that a killed sweep left unfinished come first.

    Those of another host come once it has been silent for ten minutes; with a journal:///FILE storage, never.

    A design that the study has trained is not trained again; it stands as `reused` beside the --trials that are. Dense
    attention is trained once as a reference, or what the file names in REFERENCES = {"name": {"setting": value}}.

    With --total the same command on any number of machines trains that many trials between them. Each ends when all
    have ended, with the same table, and trains what one that died left; started again it adds none.

    A sweep file is Python and runs on this machine: run only files that you would run yourself.

    `nsa-lab sweep sweeps/block_budget.py`

    `nsa-lab sweep sweeps/block_budget.py --trials 100 --workers 4 training.steps=500`

    `nsa-lab sweep sweeps/block_budget.py --seeds 3 --study three_seeds`

    `nsa-lab sweep sweeps/block_budget.py --storage postgresql://user@host/studies --study first --total 200`
    """
    from nsa_lab.search import sweep

    result = sweep(
        file,
        trials=trials,
        total=total,
        workers=workers,
        storage=storage,
        study=study,
        overrides=overrides or (),
        seeds=seeds,
        keep_checkpoints=keep_checkpoints,
    )
    if result.interrupted:
        raise typer.Exit(130)


@sweep_app.command()
def show(
    study: Annotated[str, typer.Argument(help="Name of the study.", metavar="STUDY")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Where it was run: output.dir=DIR.", metavar="KEY=VALUE")
    ] = None,
    storage: Storage = None,
) -> None:
    """Print a study's Pareto set again and rewrite its files.

    `nsa-lab sweep show block_budget`

    `nsa-lab sweep show block_budget output.dir=/data/runs`

    `nsa-lab sweep show first --storage postgresql://user@host/studies`
    """
    from nsa_lab.search import show as show_study

    show_study(study, storage=storage, output=output_of(overrides or ()))
