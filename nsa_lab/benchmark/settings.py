"""How each benchmark is asked: a YAML for each task of lmms-eval, named as the task."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nsa_lab.config.load import read_yaml
from nsa_lab.config.tree import read_dict
from nsa_lab.errors import NsaLabError, nearest
from nsa_lab.files import no_folder

FOLDER = Path("experiments/evaluate")
ALL = "all"
PATCH_PIXELS = 784
"""Of a frame, for each token of a pair of frames."""
PROMPT_TOKENS = 8192
"""Room for the question, beside the frames."""


@dataclass
class Paper:
    """VideoNSA's published scores in per cent: the headline, one design for all tasks, and dense Qwen2.5-VL-7B."""

    videonsa: float | None = None
    one_design: float | None = None
    dense: float | None = None


@dataclass
class Settings:
    """The keys of a benchmark's file.

    `dataset` is its id on the hub, `metric` what lmms-eval calls the score, and `unit` how it writes it. With
    `bare_letters` an answer that names one option is handed on as that letter alone, so that lmms-eval's parsers, which
    look for capitals, read what was meant. Frames are taken at `fps`, at most `max_frames`, spread evenly.
    """

    dataset: str
    metric: str
    unit: Literal["share", "percent"]
    tokens_per_frame: int
    max_frames: int
    fps: float
    max_new_tokens: int
    bare_letters: bool = True
    paper: Paper = field(default_factory=Paper)

    @property
    def pixels_per_frame(self) -> int:
        return self.tokens_per_frame * PATCH_PIXELS


@dataclass(frozen=True)
class Benchmark:
    """A task of lmms-eval with its settings."""

    task: str
    settings: Settings


def read_benchmarks(names: list[str], folder: Path = FOLDER) -> list[Benchmark]:
    """The benchmarks `names`, or with `all` every one that `folder` has a YAML of, by name.

    Raises NsaLabError where the folder has no such file, or one cannot be read.
    """
    if not folder.is_dir():
        raise NsaLabError(f"{folder} {no_folder(folder)}; run this in a clone of nsa-lab, or name one with --settings")
    files = {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    for name in names:
        if name not in files and name != ALL:
            known = ", ".join(files) or "none"
            raise NsaLabError(f"{name} is no benchmark of {folder}; {nearest(name, files)}known: {known}")
    wanted = list(files) if ALL in names else names
    return [Benchmark(name, read_dict(Settings, read_yaml(files[name]), str(files[name]))) for name in wanted]


def answers_folder(folder: Path, rank: int, processes: int) -> Path:
    """Where process `rank` of so many keeps its answers for the benchmark in `folder`."""
    return folder if processes == 1 else folder / f"process-{rank}"


def model_settings(fps: float | None, max_frames: int | None, pixels_per_frame: int | None) -> dict[str, Any]:
    """Settings of a model that sees videos so; what is None is left to it."""
    given: dict[str, Any] = {"data.fps": fps, "data.max_frames": max_frames, "data.max_pixels": pixels_per_frame}
    if max_frames is not None and pixels_per_frame is not None:
        given["data.max_tokens"] = max_frames * pixels_per_frame // PATCH_PIXELS + PROMPT_TOKENS
    return {key: value for key, value in given.items() if value is not None}
