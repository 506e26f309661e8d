"""`nsa-lab ask`: one question about one video."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nsa_lab.cli.evaluate import Chunk, Model, NewTokens
from nsa_lab.errors import NsaLabError

if TYPE_CHECKING:
    from nsa_lab.model import VideoNSAForConditionalGeneration

PICTURE = ".png"


def ask(
    model: Model,
    video: Annotated[Path, typer.Argument(help="The video file.", metavar="VIDEO")],
    question: Annotated[str, typer.Argument(help="What to ask about it.", metavar="QUESTION")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings on top, such as data.max_frames=64.", metavar="KEY=VALUE")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="PNG to draw: the blocks that the video's last token selected.", metavar="FILE")
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="Decoder layer of the picture; by default a late one with blocks.", min=0)
    ] = None,
    max_new_tokens: NewTokens = 64,
    prefill_chunk: Chunk = None,
) -> None:
    """Ask a model about a video; the answer, greedily written, goes to stdout.

    `nsa-lab ask runs/smoke-0123456789ab clip.mp4 "What colour was the flash?"`

    `nsa-lab ask exported/smoke clip.mp4 "Where was it?" --picture seen.png`
    """
    if picture is not None and picture.suffix != PICTURE:
        raise NsaLabError(f"--picture {picture} is no PNG; give a name that ends with {PICTURE}")
    if layer is not None and picture is None:
        raise NsaLabError("--layer says which layer to draw; give --picture FILE too")
    if not video.is_file():
        raise NsaLabError(f"video {video} {'is a folder' if video.is_dir() else 'does not exist'}; give a video file")
    from nsa_lab import api
    from nsa_lab.origin import training_device

    loaded = api.load_model(model, overrides or ())
    assert loaded.experiment is not None
    loaded.to(training_device(loaded.experiment.training.accelerator))  # type: ignore[arg-type]
    answer = api.ask(loaded, video, question, max_new_tokens=max_new_tokens, prefill_chunk=prefill_chunk)
    drawn = None if picture is None else _draw(loaded, video, question, picture, layer)
    typer.echo(answer)
    if drawn:
        from nsa_lab.cli.output import say

        say(drawn)


def _draw(
    model: "VideoNSAForConditionalGeneration", video: Path, question: str, picture: Path, layer: int | None
) -> str:
    """Draw what the question saw of the video; says what the picture shows."""
    from nsa_lab.analysis.partition import DPI, draw_choice
    from nsa_lab.evaluation.ask import Answerer, about, own_settings
    from nsa_lab.files import whole, writing

    data = Answerer(model, 1).data
    data.samples = [about(video, question)]
    figure, number, token = draw_choice(model, own_settings(model), data, layer)
    with writing(picture, "name another --picture"):
        picture.parent.mkdir(parents=True, exist_ok=True)
        with whole(picture) as unfinished:
            figure.savefig(unfinished, dpi=DPI, format="png")
    return f"{picture}: what the last video token ({token}), the nearest to the question, selected in layer {number}"
