"""`nsa-lab tasks`: list the video tasks, and measure whether one tells designs of attention apart."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from nsa_lab.cli.group import ListGroup
from nsa_lab.cli.values import names
from nsa_lab.errors import NsaLabError

tasks_app = typer.Typer(
    cls=ListGroup,
    help="""The video tasks: `tasks` lists them, `tasks check NAME` measures what one is worth and writes its card.

    `nsa-lab tasks`

    `nsa-lab tasks check recall gist --workers 16`
    """,
)


@tasks_app.command("list")
def list_() -> None:
    """List the video tasks: what they ask, their dials, chance, and the recorded dense and blind accuracies.

    Turn one on with `tasks.NAME.enabled=true` and set its dials with `tasks.NAME.DIAL=VALUE`:

    `nsa-lab train experiments/smoke.yaml tasks.order.enabled=true tasks.order.events=6`
    """
    from nsa_lab.cli.output import describe_tasks

    typer.echo(describe_tasks())


@tasks_app.command()
def check(
    arguments: Annotated[
        list[str], typer.Argument(help="Tasks, and settings of every training.", metavar="NAME|KEY=VALUE")
    ],
    seeds: Annotated[int, typer.Option(help="Trainings of each design.", min=1)] = 3,
    steps: Annotated[int | None, typer.Option(help="Steps of each; by default the suite's.", min=1)] = None,
    conversion: Annotated[
        int | None,
        typer.Option(help="Train all named tasks together; designs go on from a dense model of so many steps.", min=1),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that train at the same time.", min=1)] = 1,
    suite: Annotated[
        str | None,
        typer.Option(
            help="Experiments with the tasks' dials, by commas; the first decides; by default the two of this suite.",
            metavar="FILES",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the cards; by default {output.dir}/comparisons/suite-NAME.")
    ] = None,
) -> None:
    """Train dense, blind, frame_local and three subsets of branches on a task; write its card, NAME.md and NAME.csv.

    frame_local is the knock-out: no video row sees another frame. Each of the 6 designs is trained with each seed and
    by each experiment of the suite: experiments/tasks/suite.yaml (text rows bound to the end of the clip) and
    experiments/tasks/suite_dense_text.yaml. With 3 seeds that is 6 x 3 x 2 = 36 trainings a task; --conversion trains
    all tasks in one model, and a dense one more a seed and experiment. The same command goes on after a kill; in MLflow
    the runs stand under comparison-suite-NAME.

    `nsa-lab tasks check gist`

    `nsa-lab tasks check recall gist --seeds 5 --workers 16 --out experiments/results/tasks`

    `nsa-lab tasks check gist --steps 600 tasks.gist.lead_frames=4`

    `nsa-lab tasks check needle order recall --conversion 2000 --steps 100`
    """
    from nsa_lab.evaluation.task_check import SUITE, check_tasks

    tasks = [text for text in arguments if "=" not in text]
    if not tasks:
        raise NsaLabError("tasks check names no task; write for example: nsa-lab tasks check gist")
    cards = check_tasks(
        tasks,
        suite=[Path(file) for file in names(suite, "--suite")] or SUITE,
        overrides=[text for text in arguments if "=" in text],
        seeds=seeds,
        steps=steps,
        conversion=conversion,
        workers=workers,
        out=out,
        command=f"nsa-lab {shlex.join(sys.argv[1:])}",
    )
    for card in cards:
        typer.echo(card.read_text())
        typer.echo(card)
