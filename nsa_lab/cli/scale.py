"""`nsa-lab plan` and `nsa-lab promote`: from a design to a large training."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from nsa_lab.cli.sweep import Storage
from nsa_lab.cli.values import finite, output_of
from nsa_lab.scale import BASE, Policy
from nsa_lab.scale.rates import GPUS

Config = Annotated[Path, typer.Argument(help="YAML file of the experiment.", metavar="CONFIG")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings on top, such as model.size=7b.", metavar="KEY=VALUE"),
]


def plan(
    config: Config,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(help="GPUs to train on.", min=1)] = 8,
    gpu: Annotated[str, typer.Option(help="Which GPU.", metavar=f"<{'|'.join(GPUS)}>")] = "h100",
    tokens: Annotated[
        int | None, typer.Option(help="Video tokens of a sample; by default the longest that data.* allows.", min=1)
    ] = None,
    text: Annotated[int, typer.Option(help="Text tokens of a sample.", min=1)] = 256,
    labelled: Annotated[
        int | None, typer.Option(help="Text tokens with a label, of these; by default 64.", min=1)
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Samples of the data set; by default those of all steps.", min=1)
    ] = None,
    price: Annotated[
        float | None, typer.Option(help="Price of a GPU-hour.", metavar="PRICE", min=0, callback=finite)
    ] = None,
    checkpointing: Annotated[
        Policy | None, typer.Option(help="What the backward computes again; by default the config's.")
    ] = None,
    compiled: Annotated[
        bool | None, typer.Option("--compiled/--eager", help="The dense parts; by default as model.compile says.")
    ] = None,
    whole_loss: Annotated[
        bool, typer.Option("--whole-loss", help="All logits at once, not 1,024 rows at a time as in training.")
    ] = False,
    no_optimizer: Annotated[bool, typer.Option("--no-optimizer", help="Forward and backward alone.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Say what a training needs and costs before it starts: parameters, memory, FLOPs, step time, GPU-hours.

    Nothing is trained or downloaded; no GPU is needed. Times rest on measured rates (nsa_lab/scale/rates.csv), and each
    says whether it was measured, derived from a larger measurement, or is an estimate.

    `nsa-lab plan experiments/scale/videonsa_7b.yaml --gpus 32 --price 2.5`

    `nsa-lab plan experiments/scale/videonsa_7b.yaml --gpus 2 --gpu h200 --tokens 131072 --json`
    """
    from nsa_lab.config import load_config
    from nsa_lab.runner.view import make_console
    from nsa_lab.scale.plan import make_plan
    from nsa_lab.scale.view import as_json, print_plan

    experiment = load_config(config, overrides or ())
    made = make_plan(
        experiment,
        gpus=gpus,
        gpu=gpu,
        video_tokens=tokens,
        text=text,
        answer=labelled,
        policy=checkpointing,
        compiled=compiled,
        chunked=not whole_loss,
        optimizer=not no_optimizer,
    )
    count = experiment.training.steps * made.batch if samples is None else samples
    if json:
        import json as writer

        typer.echo(writer.dumps(as_json(made, count, price), indent=1))
    else:
        print_plan(made, make_console(), count, price)


def promote(
    study: Annotated[str, typer.Argument(help="A study's name, or its folder.", metavar="STUDY")],
    to: Annotated[Path, typer.Option(help="The YAML file to write.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Where it was run: output.dir=DIR.", metavar="KEY=VALUE")
    ] = None,
    trial: Annotated[
        int | None, typer.Option(help="Number of the trial; by default the recommended one.", min=0)
    ] = None,
    base: Annotated[Path, typer.Option(help="The config that gives all but the design.")] = BASE,
    storage: Storage = None,
) -> None:
    """Write the config of a large training with a trial's design, in the units of that scale.

    Sizes of blocks follow the tokens of a frame, budgets the length of the clips; each change is listed with its
    reason, here and in the file. A design that cannot run there is refused. The file trains, shows and plans as it is.

    `nsa-lab promote demo --to experiments/scale/NAME.yaml`

    `nsa-lab promote runs/studies/demo --trial 6 --to experiments/scale/NAME.yaml`
    """
    from nsa_lab.cli.output import say
    from nsa_lab.scale.promote import promote as write

    made = write(study, to, trial=trial, base=base, storage=storage, output=output_of(overrides or ()))
    typer.echo(f"{made.file}: {made.source.title} ({made.source.values}), with all else of {base}")
    for change in made.changes:
        typer.echo(f"  {change}")
    for setting in made.left:
        typer.echo(f"  not carried over: {setting}, which is no part of a design")
    for notice in made.said:
        say(f"notice: {notice}")
    typer.echo(f"next: nsa-lab plan {shlex.quote(str(made.file))} --gpus {made.plan.setup.gpus}")
