"""`nsa-lab plan`: what a training needs and costs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Config = Annotated[Path, typer.Argument(help="YAML file of the experiment.", metavar="CONFIG")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings on top, such as model.size=7b.", metavar="[KEY=VALUE]..."),
]


def plan(
    config: Config,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(help="GPUs to train on.")] = 8,
    gpu: Annotated[str, typer.Option(help="Which GPU: h100 or h200.")] = "h100",
    tokens: Annotated[
        int | None, typer.Option(help="Video tokens of a sample; by default the longest that data.* allows.")
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Samples of the data set; by default those of all steps.")] = None,
    price: Annotated[float | None, typer.Option(help="Price of a GPU-hour.")] = None,
    checkpointing: Annotated[
        Literal["none", "selective", "full"] | None,
        typer.Option(help="What the backward computes again; by default all where activation_checkpointing is on."),
    ] = None,
    compiled: Annotated[bool, typer.Option("--compiled", help="Norms, rotary embedding and MLPs compiled.")] = False,
    chunked_loss: Annotated[bool, typer.Option("--chunked-loss", help="Logits of 1,024 rows at a time.")] = False,
    optimizer: Annotated[bool, typer.Option(help="With the optimizer, or forward and backward alone.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Say what a training needs and costs before it starts: parameters, memory, FLOPs, step time, GPU-hours.

    Nothing is trained or downloaded; no GPU is needed. Times rest on measured rates (nsa_lab/scale/rates.csv), and each
    says whether it was measured, derived from a larger measurement, or is an estimate.

    `nsa-lab plan experiments/scale/videonsa_7b.yaml --gpus 32 --compiled --price 2.5`

    `nsa-lab plan experiments/scale/videonsa_7b.yaml --gpus 2 --gpu h200 --tokens 131072 --json`
    """
    from nsa_lab.config import load_config
    from nsa_lab.runner.view import make_console
    from nsa_lab.scale.plan import make_plan
    from nsa_lab.scale.view import as_json, print_plan

    experiment = load_config(config, overrides or ())
    training = experiment.training
    made = make_plan(
        experiment,
        gpus=gpus,
        gpu=gpu,
        video_tokens=tokens,
        policy=checkpointing,
        compiled=compiled,
        chunked=chunked_loss,
        optimizer=optimizer,
    )
    count = training.steps * training.accumulate * training.batch_size if samples is None else samples
    if json:
        import json as writer

        typer.echo(writer.dumps(as_json(made, count, price), indent=1))
    else:
        print_plan(made, make_console(), count, price)
