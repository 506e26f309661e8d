"""Run benchmarks: lmms-eval in a process of its own for each, since each has settings of its own."""

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nsa_lab.benchmark.failure import why
from nsa_lab.benchmark.local import local_task
from nsa_lab.benchmark.manifest import MODEL
from nsa_lab.benchmark.settings import Benchmark, answers_folder
from nsa_lab.errors import NsaLabError
from nsa_lab.evaluation.predictions import LINES
from nsa_lab.files import read_json, write_json, writing
from nsa_lab.origin import machine_facts

SCORE, LOG, RAW = "benchmark.json", "lmms_eval.log", "lmms_eval"
HF_HOME = "~/.cache/huggingface"
OURS = ("data.fps", "data.max_frames", "data.max_pixels", "data.max_tokens")
KEYS = ("task", "model", "score", "questions", "unanswered", "paper")


@dataclass(frozen=True)
class Score:
    """What lmms-eval says of a task, in per cent; `unanswered` of the questions had a video that cannot be used."""

    task: str
    model: str
    score: float
    questions: int
    unanswered: int
    paper: dict[str, float | None]

    @classmethod
    def read(cls, folder: Path) -> "Score":
        """The score that `benchmark` left in `folder`. Raises NsaLabError where it is damaged."""
        found = read_json(folder / SCORE, f"remove {folder / SCORE} and run the benchmark again", KEYS)
        return cls(**{key: found[key] for key in KEYS})


def check_installed() -> None:
    """Raise NsaLabError unless lmms-eval can be used here, and finds our model."""
    if importlib.util.find_spec("lmms_eval") is None:
        raise NsaLabError(
            "lmms-eval is not installed here; in a clone `make eval` sets up .venv-eval with it"
            " (.venv-eval/bin/nsa-lab benchmark ...), elsewhere pip install 'nsa-lab[eval]' does"
        )
    if MODEL not in {entry.name for entry in importlib.metadata.entry_points(group="lmms_eval.models")}:
        raise NsaLabError(
            f"lmms-eval would not find the model {MODEL}; install nsa-lab itself: pip install -e '.[eval]'"
        )


def benchmark(
    model: str,
    chosen: Benchmark,
    output: Path,
    *,
    overrides: Sequence[str] = (),
    batch: int = 1,
    prefill_chunk: int | None = None,
    processes: int = 1,
    rows: Path | None = None,
    limit: int | None = None,
) -> Score:
    """Let lmms-eval ask `model` the questions of a benchmark (the first `limit`); all goes to a folder in `output`.

    `overrides` are settings of the model. `rows` has files TASK.parquet (.json, .jsonl) of what need not be fetched.
    Answers that are there already are not asked again. prefill_chunk: prompts are read about so many tokens at a time,
    in less memory. Raises NsaLabError, with what lmms-eval died of.
    """
    check_installed()
    _refuse(overrides)
    folder = output / chosen.task
    with writing(folder, "name another --output"):
        shutil.rmtree(folder / RAW, ignore_errors=True)  # of an earlier attempt; the answers are beside it
        folder.mkdir(parents=True, exist_ok=True)
    name = (rows and local_task(chosen.task, rows, folder / RAW)) or chosen.task
    options = {"limit": limit, "include_path": folder / RAW, "batch_size": batch, "output_path": folder / RAW}
    given = [word for key, value in options.items() if value is not None for word in (f"--{key}", str(value))]
    asked = [*_model_arguments(model, chosen, folder, overrides, prefill_chunk), *_task_arguments(chosen, name), *given]
    home = os.environ.get("HF_HOME", os.path.expanduser(HF_HOME))
    with open(folder / LOG, "w") as log:
        command = [sys.executable, *_launcher(processes), "-m", "lmms_eval", *asked]
        # Without HF_HOME lmms-eval looks for videos of MLVU elsewhere than for those of the other tasks.
        done = subprocess.run(command, env=os.environ | {"HF_HOME": home}, stdout=log, stderr=subprocess.STDOUT)
    results = sorted((folder / RAW).rglob("*_results.json"))
    if done.returncode or not results:
        raise NsaLabError(why(folder / LOG, chosen, home))
    metrics = json.loads(results[-1].read_text())["results"][name]
    score = _score(model, chosen, answer_files(folder, processes), metrics)
    facts = {"settings": asdict(chosen.settings), "overrides": list(overrides), "processes": processes, "batch": batch}
    versions = {"lmms_eval": importlib.metadata.version("lmms_eval")} | machine_facts("auto", None)
    write_json(folder / SCORE, asdict(score) | {"metrics": metrics} | facts | versions)
    return score


def _refuse(overrides: Sequence[str]) -> None:
    for text in overrides:
        if text.partition("=")[0] in OURS:
            raise NsaLabError(
                f"{text}: how videos are seen is the benchmark's; change a copy of its file (--settings DIR)"
            )


def _launcher(processes: int) -> list[str]:
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []


def _model_arguments(
    model: str, chosen: Benchmark, folder: Path, overrides: Sequence[str], prefill_chunk: int | None
) -> list[str]:
    settings = chosen.settings
    given = {
        "pretrained": model,
        "fps": settings.fps,
        "max_frames": settings.max_frames,
        "pixels_per_frame": settings.pixels_per_frame,
        "bare_letters": settings.bare_letters,
        "predictions": folder,
        "prefill_chunk": "" if prefill_chunk is None else prefill_chunk,
        "design": ";".join(overrides),
    }
    for name, value in given.items():
        if name != "design" and any(mark in str(value) for mark in ",'\"{}[]"):
            raise NsaLabError(f"{value}: lmms-eval takes no commas, quotes or brackets in paths; move or rename it")
    said = ",".join(f"{name}={value}" for name, value in given.items() if value != "")
    return ["--model", MODEL, "--model_args", said]


def _task_arguments(chosen: Benchmark, name: str) -> list[str]:
    """One thread scores, since in LongVideoBench some answers are drawn; and lmms-eval ends in an error if it meets one
    only where it debugs."""
    tokens = f"max_new_tokens={chosen.settings.max_new_tokens}"
    task = ["--tasks", name, "--gen_kwargs", tokens, "--log_samples"]
    return [*task, "--process_docs_parallel", "1", "--verbosity", "DEBUG"]


def _score(model: str, chosen: Benchmark, files: Sequence[Path], metrics: dict[str, Any]) -> Score:
    settings = chosen.settings
    key = next((name for name in metrics if name.partition(",")[0] == settings.metric), None)
    if key is None:
        known = ", ".join(sorted(name.partition(",")[0] for name in metrics))
        raise NsaLabError(f"lmms-eval gives {chosen.task} no {settings.metric}; it gives {known}; correct its file")
    value = float(metrics[key]) * (100 if settings.unit == "share" else 1)
    rows = list(_last_rows(files))
    unanswered = sum(row["answer"] is None for row in rows)
    return Score(chosen.task, model, value, len(rows), unanswered, asdict(settings.paper))


def answer_files(folder: Path, processes: int) -> list[Path]:
    """The files of answers that so many processes left."""
    return [answers_folder(folder, rank, processes) / LINES for rank in range(processes)]


def _last_rows(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Of each question the line written last: one that had a bad video may have an answer further down."""
    rows = {}
    for file in files:
        for line in file.read_text("utf-8").splitlines():
            row = json.loads(line)
            rows[row["place"]] = row
    yield from rows.values()
