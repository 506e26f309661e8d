"""`nsa-lab bench`: how long a training step takes, or one layer's attention."""

from pathlib import Path
from typing import Annotated

import typer

from nsa_lab.cli.values import Experiment, load_experiment, whole_numbers
from nsa_lab.errors import NsaLabError


def bench(
    experiment: Experiment = None,
    lengths: Annotated[str, typer.Option(help="Video tokens of the sample, each a multiple of 64.")] = "512,2048,8192",
    sizes: Annotated[
        str | None, typer.Option(help="Model sizes; nano where neither they nor model.path are given.")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Timed steps per point; the fastest counts.", min=1)] = 3,
    out: Annotated[Path | None, typer.Option(help="CSV to append to.")] = None,
    layer: Annotated[bool, typer.Option("--layer", help="One layer's attention, forward, on random heads.")] = False,
    methods: Annotated[
        str | None, typer.Option(help="With --layer: the prefill of these attention methods, its choice apart.")
    ] = None,
    inputs: Annotated[
        str | None, typer.Option(help="With --methods: heads that are random, or drift as a video's (video).")
    ] = None,
    parts: Annotated[
        bool, typer.Option("--parts", help="The step as it was and with each fast part: rate, MFU, memory, kernels.")
    ] = False,
    only: Annotated[
        str | None,
        typer.Option(help="With --parts: these of its rows, separated by semicolons; an unknown one lists them."),
    ] = None,
    optimizer: Annotated[bool, typer.Option(help="With --parts: whether the optimiser steps too.")] = True,
    labels: Annotated[int, typer.Option(help="With --parts: words of the answer.", min=1)] = 256,
) -> None:
    """Measure a training step, sparse against dense: seconds and peak memory by video length.

    Each point runs in a process of its own. The CSV says on which machine.

    `nsa-lab bench`

    `nsa-lab bench --lengths 512,2048,8192,32768 --sizes nano,micro --repeats 5 --out bench.csv`

    `nsa-lab bench attention.partition.block_size=32 training.threads=1`

    `nsa-lab bench --layer --sizes 7b --lengths 32768 --repeats 1`

    `nsa-lab bench --layer --sizes 7b --lengths 8192,32768 --methods dense,x_attention training.precision=bf16-true`

    `nsa-lab bench --parts --no-optimizer --lengths 32768 model.size=7b training.precision=bf16-true`
    """
    from nsa_lab.bench.parts import run_parts
    from nsa_lab.bench.prefill import run_prefill
    from nsa_lab.bench.run import run_bench

    if parts:
        if sizes is not None or layer or methods is not None:
            raise NsaLabError("--parts measures the config's model.size; leave out --sizes, --layer and --methods")
        run_parts(
            load_experiment(experiment or []),
            lengths=whole_numbers(lengths, "--lengths"),
            repeats=repeats,
            out=out,
            optimizer=optimizer,
            labels=labels,
            only=None if only is None else [name.strip() for name in only.split(";")],
        )
        return
    if only is not None:
        raise NsaLabError("--only names rows of --parts; give --parts, too")
    if methods is not None or inputs is not None:
        if not layer or methods is None:
            raise NsaLabError("--methods and --inputs are of one layer's prefill; give --layer and --methods")
        run_prefill(
            load_experiment(experiment or []),
            methods=methods.split(","),
            lengths=whole_numbers(lengths, "--lengths"),
            sizes=(sizes or "nano").split(","),
            inputs=(inputs or "random,video").split(","),
            repeats=repeats,
            out=out,
        )
        return
    run_bench(
        load_experiment(experiment or []),
        lengths=whole_numbers(lengths, "--lengths"),
        sizes=sizes.split(",") if sizes is not None else None,
        repeats=repeats,
        out=out,
        layer=layer,
    )
