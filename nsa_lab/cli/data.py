"""`nsa-lab data`: look at annotations and videos before a training."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nsa_lab.errors import NsaLabError

if TYPE_CHECKING:
    from nsa_lab.config import ExperimentConfig
    from nsa_lab.data.check import Check

SUMMARY, PICTURE = "summary.json", "data.png"

data_app = typer.Typer(
    no_args_is_help=True,
    help="""Annotations and videos: `data check FILE` says what a training would meet in them.

    `nsa-lab data check train.json --videos videos --workers 8`
    """,
)


@data_app.callback()
def group() -> None:
    """Makes `check` a command of a group, though it is alone there."""


@data_app.command()
def check(
    annotations: Annotated[Path, typer.Argument(help="JSON, JSONL, or a folder of such files.", metavar="ANNOTATIONS")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="The training's YAML (else the defaults) and settings.", metavar="CONFIG|KEY=VALUE"),
    ] = None,
    videos: Annotated[
        Path | None, typer.Option(help="Folder that their paths are relative to; else the config's data.videos.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of what is found; by default data/NAME in output.dir.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that look at videos.", min=1)] = 1,
    decode: Annotated[bool, typer.Option(help="Decode every video, else read headers and times alone.")] = True,
    rate: Annotated[
        int, typer.Option(help="Tokens a second that the training reads, to say how many cores feed it.", min=1)
    ] = 7500,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Count rows, videos, hours and tokens, decode every video once, and write a list of what cannot be used.

    Nothing stops at a bad row or video. `--out` gets drop.jsonl, a line with the reason for each video or row that a
    training could not use: data.drop=FILE leaves them out. Beside it summary.json, a picture of durations and token
    lengths (data.png), and videos.jsonl, by which the same command goes on where it ended: what was seen of a video is
    kept until its file, data.fps or data.max_frames change; what could not be read is tried again.

    `nsa-lab data check train.json --videos videos --workers 8 data.fps=4`

    `nsa-lab data check LLaVA-Video-178K experiments/scale/videonsa_7b.yaml --videos LLaVA-Video-178K --workers 64`

    `nsa-lab train mine.yaml data.drop=runs/data/train/drop.jsonl`
    """
    from nsa_lab.cli.bar import progress_bar
    from nsa_lab.data.check import DROP
    from nsa_lab.data.check import check as look

    config = _config(annotations, settings or [], videos)
    folder = out or Path(config.output.dir) / "data" / annotations.stem
    _refuse_other(folder, annotations)
    with progress_bar("looked at", quiet) as tell:
        found = look(
            config,
            folder,
            workers=workers,
            decode=decode,
            on_progress=lambda done, total, bad: tell(done, total, f"{bad} cannot be read" if bad else ""),
        )
    _write(found, config, folder, decode)
    _print(found, config, rate)
    print(f"\nfound: {folder}")
    if found.drop:
        print(f"leave them out with data.drop={folder / DROP}")


def _config(annotations: Path, settings: list[str], videos: Path | None) -> "ExperimentConfig":
    from nsa_lab.config import load_config
    from nsa_lab.config.load import parse_overrides

    file = settings[0] if settings and "=" not in settings[0] else None
    given = parse_overrides(settings[1:] if file else settings)
    if "data.annotations" in given:
        raise NsaLabError("data.annotations is not read here; give the file as ANNOTATIONS, the first argument")
    given["data.annotations"] = str(annotations)
    if videos is not None:
        given["data.videos"] = str(videos)
    elif file is None and "data.videos" not in given:
        raise NsaLabError(f"where are the videos of {annotations}? give --videos DIR")
    return load_config(file, given)


def _refuse_other(folder: Path, annotations: Path) -> None:
    """Raise NsaLabError where the folder holds what was found of another file of that name."""
    try:
        other = Path(json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["annotations"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    if other.resolve() != annotations.resolve():
        raise NsaLabError(f"{folder} holds what was found of {other}; name another folder with --out")


def _write(found: "Check", config: "ExperimentConfig", folder: Path, decode: bool) -> None:
    from nsa_lab.analysis.attention.style import DPI
    from nsa_lab.analysis.data_picture import draw_data
    from nsa_lab.data.summary import as_plain
    from nsa_lab.files import whole, write_json, writing
    from nsa_lab.origin import machine_facts

    data = config.data
    facts = machine_facts("cpu", 1) | {"annotations": str(data.annotations), "decoded": decode}
    facts |= {key: getattr(data, key) for key in ("fps", "max_frames", "min_pixels", "max_pixels", "max_tokens")}
    with writing(folder, "make room and run the same command again"):
        write_json(folder / SUMMARY, as_plain(found, facts))
        with whole(folder / PICTURE) as unfinished:
            draw_data(found, config).savefig(unfinished, dpi=DPI, format="png")


def _print(found: "Check", config: "ExperimentConfig", rate: int) -> None:
    from rich.console import Console
    from rich.table import Table

    from nsa_lab.data.summary import QUANTILES, decoding, groups, quantiles, sizes

    console = Console(width=100)
    table = Table("group", "rows", "questions", "videos", "hours", "tokens", box=None)
    for group in groups(found):
        counts = (f"{count:,}" for count in (group.rows, group.questions, group.videos))
        table.add_row(group.group, *counts, f"{group.hours:,.2f}", f"{group.tokens:,}")
    spread = Table("", *QUANTILES, box=None)
    for what, values in sizes(found).items():
        if values:
            spread.add_row(what, *(f"{value:,.5g}" for value in quantiles(values).values()))
    for one in (table, spread):
        for column in one.columns[1:]:
            column.justify = "right"
        console.print(one)
        print()
    lost = sum(found.lost.values())
    reasons = [f"{count:,} with {kind}" for kind, count in found.lost.items()]
    print(", ".join([f"not usable: {lost:,} of {lost + found.outside + len(found.good):,} rows", *reasons]))
    if found.outside:
        print(f"left out: {found.outside:,} rows, by data.fewest_frames and data.most_frames")
    if (budget := config.training.tokens_per_batch) and found.good:
        from nsa_lab.training.data import FilledBatches
        from nsa_lab.training.packing import fill_rate

        lengths = [row.tokens for row in found.good]
        batches = FilledBatches(lengths, budget, config.seed).epoch(0)
        share = fill_rate(batches, lengths, budget)
        print(f"packing: {len(batches):,} batches of up to {budget:,} tokens an epoch, {share:.1%} full")
    if taken := decoding(found):
        print(
            f"decoding takes {taken.seconds:.3g} s of a core a video: {taken.per_second:.3g} videos/s and"
            f" {taken.tokens_per_second:,.0f} tokens/s a core; {rate:,} tokens/s take {taken.cores(rate):.2g} cores"
        )
