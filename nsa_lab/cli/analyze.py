"""`nsa-lab analyze`: look into a trained run."""

from pathlib import Path
from typing import Annotated, Any

import typer

from nsa_lab.cli.group import DefaultGroup
from nsa_lab.cli.values import whole_numbers
from nsa_lab.errors import NsaLabError
from nsa_lab.files import no_folder


class AnalyzeGroup(DefaultGroup):
    default = "run"


analyze_app = typer.Typer(
    cls=AnalyzeGroup,
    no_args_is_help=True,
    help="""Look into a trained run: `analyze RUN` measures its attention, `analyze partition RUN` draws its blocks.

    `nsa-lab analyze runs/smoke-0123456789ab`

    `nsa-lab analyze partition runs/smoke-0123456789ab`
    """,
)


@analyze_app.command("run")
def run_(
    run: Annotated[Path, typer.Argument(help="Directory of a run, or folder of weights.", metavar="RUN")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings on top; of weights, their data.", metavar="KEY=VALUE")
    ] = None,
    clips: Annotated[int, typer.Option(help="Validation clips to measure over.", min=1)] = 4,
    output: Annotated[Path | None, typer.Option(help="Folder of the files; by default RUN/analysis.")] = None,
    latency: Annotated[
        bool, typer.Option("--latency", help="Time one layer too, each branch alone and dense; takes minutes.")
    ] = False,
    lengths: Annotated[str, typer.Option(help="Video tokens of --latency, each a multiple of 64.")] = "1024,4096,16384",
    repeats: Annotated[int, typer.Option(help="Timed forwards of --latency per point.", min=1)] = 3,
) -> None:
    """Measure a run's attention: gates, sinks, shared choices, budget; figures (PNG) and tables (CSV).

    A run that is tracked gets them as artifacts below `analysis`. `about.json` says of which clips, commit and machine.

    `nsa-lab analyze runs/smoke-0123456789ab`

    `nsa-lab analyze runs/smoke-0123456789ab --clips 16 --latency --lengths 512,2048,8192 --output analysis`

    `nsa-lab analyze weights data.annotations=val.json data.videos=videos --clips 1`
    """
    from nsa_lab.analysis.attention.report import analyze
    from nsa_lab.api import load_model
    from nsa_lab.bench.run import check_length
    from nsa_lab.cli.output import say
    from nsa_lab.origin import training_device
    from nsa_lab.tracking import attach

    _check_folder(run, overrides or [])
    points = whole_numbers(lengths, "--lengths") if latency else []
    for point in points:
        check_length(point)
    model = load_model(run, overrides or ())
    config = model.experiment
    assert config is not None
    found = analyze(model.float().to(training_device(config.training.accelerator)), config, clips=clips)
    if latency:
        found.tables["latency"] = _timed(model, points, repeats)
    files = found.write(output or run / "analysis")
    for note in found.notes:
        say(f"notice: {note}")
    for file in files:
        typer.echo(file)
    if unsent := attach(run, files, "analysis"):
        say(f"notice: the files are not in MLflow: {unsent}")


def _check_folder(run: Path, overrides: list[str]) -> None:
    """Raise NsaLabError where `run` is neither a run nor weights with data."""
    if not run.is_dir():
        raise NsaLabError(f"{run} {no_folder(run)}; give the directory of a run, or a folder of weights")
    if (run / "config.yaml").is_file():
        return
    if not list(run.glob("*.safetensors")):
        raise NsaLabError(
            f"{run} holds neither a run (config.yaml) nor weights (*.safetensors); give a folder that does"
        )
    if not any(text.startswith(("data.annotations=", "tasks.")) for text in overrides):
        raise NsaLabError(f"{run} holds weights and no data; add data.annotations=FILE, or tasks.NAME.enabled=true")


def _timed(model: Any, lengths: list[int], repeats: int) -> list[dict[str, Any]]:
    from nsa_lab.bench.branches import bench_branches
    from nsa_lab.cli.output import say

    text = model.config.text_config
    shape = {"hidden_size": text.hidden_size, "num_heads": text.num_attention_heads}
    shape |= {"num_kv_heads": text.num_key_value_heads, "num_layers": text.num_hidden_layers}
    rows = []
    for row in bench_branches(model.experiment, lengths=lengths, repeats=repeats, shape=shape):
        say(f"{row['video_tokens']:>7} tokens {row['what']:>12} {row['seconds']:.4f} s {row['peak_mib']:.0f} MiB")
        rows.append(row)
    return rows


@analyze_app.command()
def partition(
    run: Annotated[Path, typer.Argument(help="Directory of a run with a checkpoint.", metavar="RUN")],
    sample: Annotated[int, typer.Option(help="Number of the validation sample, from 0.", min=0)] = 0,
    layer: Annotated[
        int | None, typer.Option(help="Decoder layer; by default one for each partition that layers differ in.", min=0)
    ] = None,
    query: Annotated[
        int | None, typer.Option(help="Number of the video token that asks; by default one at three quarters.", min=0)
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
    video, seen = watch(module.model, config, data.val, sample, query)
    check_layer(module.model, seen, layer)
    folder = output or run / "pictures" / "partition"
    for number in typical_layers(seen) if layer is None else [layer]:
        try:
            files = draw_partition(config, sample, video, seen, number, folder)
        except OSError as error:
            raise NsaLabError(f"cannot write into {folder}: {error.strerror}; name another --output") from error
        for file in files:
            typer.echo(file)
