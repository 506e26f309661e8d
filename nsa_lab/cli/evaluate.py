"""`nsa-lab evaluate`: how many questions a model answers rightly."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nsa_lab.cli.values import home_of
from nsa_lab.errors import NsaLabError

if TYPE_CHECKING:
    from nsa_lab.evaluation import Evaluation

Model = Annotated[str, typer.Argument(help="A run's folder, an exported one, or a hub id.", metavar="MODEL")]
NewTokens = Annotated[int, typer.Option(help="Tokens of an answer at most.", min=1)]
Chunk = Annotated[
    int | None, typer.Option("--prefill-chunk", help="Read prompts so many tokens at a time, to save memory.", min=1)
]
PLACES = {"data.videos=": "--videos DIR", "data.annotations=": "DATA, after MODEL", "tasks.": "the task's name as DATA"}


def evaluate(
    model: Model,
    data: Annotated[str, typer.Argument(help="An annotation file, or a task's name.", metavar="DATA")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings on top, such as data.max_frames=64.", metavar="KEY=VALUE")
    ] = None,
    videos: Annotated[Path | None, typer.Option(help="Folder that an annotation file's paths are relative to.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the predictions; by default MODEL/evaluation/DATA.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Questions answered at once.", min=1)] = 4,
    max_new_tokens: NewTokens = 64,
    prefill_chunk: Chunk = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Let a model answer all questions of a task's validation clips, or of an annotation file, and count right ones.

    Answers are written greedily. Right is the expected answer word for word, whatever its case and the punctuation
    around it; of multiple choice (options in lines `A. ...`) its letter, as `B`, `(B)`, `Answer: B` or the option's
    text. The folder holds every answer (predictions.jsonl), and the accuracies with 95% intervals by `task` of the
    rows (summary.json, accuracy.csv), and what the first batch's prompts spent on attention (budget/*, as a training
    measures it); a tracked run gets them in MLflow, under DATA, or DATA-NAME of --output NAME. The
    same command goes on where it ended; under other settings give an --output of its own.

    `nsa-lab evaluate runs/smoke-0123456789ab needle`

    `nsa-lab evaluate exported/smoke val.json --videos videos --batch 8 data.on_bad_sample=skip`
    """
    from nsa_lab.evaluation.questions import check_data

    _check_overrides(overrides or [])
    check_data(data)
    from nsa_lab import api
    from nsa_lab.cli.bar import progress_bar
    from nsa_lab.cli.output import print_metrics, say
    from nsa_lab.config import is_run
    from nsa_lab.config.rules import notices
    from nsa_lab.origin import training_device
    from nsa_lab.tracking import annotate, attach

    loaded = api.load_model(model, overrides or ())
    config = loaded.experiment
    assert config is not None
    if is_run(model):
        for notice in notices(config):
            say(f"notice: {notice}")
    name = Path(data).stem
    folder = output or home_of(model, config.output.dir) / "evaluation" / name
    already: list[int] = []
    with progress_bar("answered", quiet) as tell:

        def on_progress(done: int, total: int, right: int) -> None:
            already.append(done)
            tell(done, total, f"{right / done:.1%} right" if done else "")

        found = api.evaluate(
            loaded.to(training_device(config.training.accelerator)),  # type: ignore[arg-type]
            data,
            folder,
            videos=videos,
            batch=batch,
            max_new_tokens=max_new_tokens,
            prefill_chunk=prefill_chunk,
            on_progress=on_progress,
        )
    if already[0]:
        say(f"{already[0]} of {len(found.predictions)} answers were there already and are not asked again")
    _print(found)
    if found.budget:
        print()
        print_metrics(found.budget)
    print(f"\npredictions: {folder}")
    if Path(model).is_dir():
        place = name if output is None else f"{name}-{output.name}"
        annotate(Path(model), {f"evaluation.{place}": f"{found.accuracy:.4f}"})
        if unsent := attach(Path(model), found.files, f"evaluation/{place}"):
            say(f"notice: the files are not in MLflow: {unsent}")


def _check_overrides(overrides: list[str]) -> None:
    """Raise NsaLabError on a setting that says what the arguments say."""
    for text in overrides:
        for key, place in PLACES.items():
            if text.startswith(key) and (key != "tasks." or text.partition("=")[0].endswith(".enabled")):
                raise NsaLabError(f"{text}: evaluate asks what DATA says; give {place}")


def _print(found: "Evaluation") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("group", "questions", "right", "accuracy", "95% interval", "skipped", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    lines = found.accuracies
    for line in lines[:1] if len(lines) == 2 else lines:  # all of one group are that group
        shares = (f"{line.accuracy:.1%}", f"{line.low:.1%} to {line.high:.1%}") if line.questions else ("", "")
        table.add_row(line.group, str(line.questions), str(line.correct), *shares, str(line.skipped))
    Console(width=100).print(table)
