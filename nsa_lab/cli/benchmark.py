"""`nsa-lab benchmark`: public benchmarks through lmms-eval."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nsa_lab.cli.evaluate import Chunk, Model
from nsa_lab.cli.values import home_of, names

if TYPE_CHECKING:
    from nsa_lab.benchmark.run import Score


def benchmark(
    model: Model,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings of the model on top, such as attention.*", metavar="KEY=VALUE"),
    ] = None,
    tasks: Annotated[str, typer.Option(help="Benchmarks by commas, such as mlvu_test,tomato; or all.")] = "all",
    settings: Annotated[Path, typer.Option(help="Folder with a YAML for each benchmark.")] = Path(
        "experiments/evaluate"
    ),
    output: Annotated[
        Path | None, typer.Option(help="Folder of answers and scores; by default MODEL/benchmark.")
    ] = None,
    rows: Annotated[
        Path | None, typer.Option(help="Folder with TASK.parquet (.json, .jsonl): rows that need not be fetched.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Questions answered at once.", min=1)] = 1,
    prefill_chunk: Chunk = None,
    processes: Annotated[int, typer.Option(help="Processes (GPUs) that share the questions.", min=1)] = 1,
    limit: Annotated[int | None, typer.Option(help="Only so many first questions, to try.", min=1)] = None,
) -> None:
    """Let lmms-eval ask a model public benchmarks; print its scores beside the paper's.

    Needs lmms-eval: `make eval` sets up .venv-eval with it. Each benchmark's tokens per frame, frames and answer length
    are the paper's, in experiments/evaluate. Answers are greedy and kept as they come (predictions.jsonl): the same
    command goes on where it ended. A tracked run gets scores and files in MLflow.

    `.venv-eval/bin/nsa-lab benchmark exported/videonsa --tasks mlvu_test,tomato --processes 8`

    `.venv-eval/bin/nsa-lab benchmark runs/mine --tasks vsibench --limit 20 attention.branches.window.size=32`
    """
    from nsa_lab.benchmark import benchmark as run
    from nsa_lab.benchmark import read_benchmarks
    from nsa_lab.benchmark.run import check_installed
    from nsa_lab.cli.output import say
    from nsa_lab.config import flatten
    from nsa_lab.config.load import parse_overrides
    from nsa_lab.config.schema import OutputConfig

    chosen = read_benchmarks(names(tasks, "--tasks"), settings)
    check_installed()
    name = "benchmark" if limit is None else f"benchmark-first-{limit}"
    runs = str(flatten(parse_overrides(overrides or ())).get("output.dir", OutputConfig().dir))
    folder = output or home_of(model, runs) / name
    options = {"batch": batch, "prefill_chunk": prefill_chunk, "processes": processes, "rows": rows, "limit": limit}
    scores = []
    for one in chosen:
        say(f"{one.task}: asking; what lmms-eval says goes to {folder / one.task}/lmms_eval.log")
        scores.append(run(model, one, folder, overrides=overrides or (), **options))  # type: ignore[arg-type]
        _record(Path(model), folder / one.task, scores[-1], processes)
    _print(scores, folder)


def _record(model: Path, folder: Path, score: "Score", processes: int) -> None:
    """Give the run its score as a tag, and the files, in MLflow; a model that is no run has none."""
    from nsa_lab.benchmark.run import LOG, SCORE, answer_files
    from nsa_lab.cli.output import say
    from nsa_lab.tracking import annotate, attach

    if model.is_dir():
        annotate(model, {f"{folder.parent.name}.{score.task}": f"{score.score:.2f}"})
        files = [folder / SCORE, folder / LOG, *answer_files(folder, processes)]
        if unsent := attach(model, files, f"{folder.parent.name}/{score.task}"):
            say(f"notice: the files are not in MLflow: {unsent}")


def _print(scores: "list[Score]", folder: Path) -> None:
    from rich.console import Console

    from nsa_lab.benchmark.table import scores_table
    from nsa_lab.files import write_text

    table = scores_table(scores)
    Console(width=140).print(table.filled().drawn())
    write_text(folder / "table.md", f"{table.markdown()}\n")
    print(f"\nanswers and scores: {folder}")
