"""`nsa-lab analyze`: look into a trained run."""

from pathlib import Path
from typing import Annotated

import typer

from nsa_lab.errors import NsaLabError

analyze_app = typer.Typer(
    no_args_is_help=True,
    help="""Look into a trained run: `analyze partition RUN` draws its blocks and what a query selected.

    `nsa-lab analyze partition runs/smoke-0123456789ab`
    """,
)


@analyze_app.callback()
def options() -> None:
    """Makes `analyze` a group, whose commands are named."""


@analyze_app.command()
def partition(
    run: Annotated[Path, typer.Argument(help="Directory of a run with a checkpoint.", metavar="RUN")],
    sample: Annotated[int, typer.Option(help="Number of the validation sample, from 0.")] = 0,
    layer: Annotated[
        int | None, typer.Option(help="Decoder layer; by default one for each partition that layers differ in.")
    ] = None,
    query: Annotated[
        int | None, typer.Option(help="Number of the video token that asks; by default one at three quarters.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the pictures; by default RUN/pictures/partition.")
    ] = None,
) -> None:
    """Draw a run's partition: blocks over the frames, what one query selected, block lengths over time (PNG).

    `nsa-lab analyze partition runs/smoke-0123456789ab`

    `nsa-lab analyze partition runs/smoke-0123456789ab --sample 3 --layer 1 --query 40 --output pictures`
    """
    from nsa_lab.analysis.partition import check_layer, draw_partition, typical_layers, watch
    from nsa_lab.training.restore import restore

    config, module, data = restore(run)
    check_layer(module.model, layer)
    video, seen = watch(module.model, config, data.val, sample, query)
    folder = output or run / "pictures" / "partition"
    for number in typical_layers(seen) if layer is None else [layer]:
        try:
            files = draw_partition(config, sample, video, seen, number, folder)
        except OSError as error:
            raise NsaLabError(f"cannot write into {folder}: {error.strerror}; name another --output") from error
        for file in files:
            typer.echo(file)
