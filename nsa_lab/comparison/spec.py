"""A comparison file: which designs, on which experiments, judged by what, against whom."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from nsa_lab.config import ExperimentConfig, config_hash, load_config
from nsa_lab.errors import NsaLabError
from nsa_lab.files import unfit_for_a_folder
from nsa_lab.runner.python_file import execute, experiment_file

NEEDED = ("EXPERIMENTS", "VARIANTS", "REFERENCES", "METRICS", "SEEDS")
MEASURED = (
    "val/accuracy",
    "val/loss",
    "train/loss",
    "budget/keys_per_query",
    "budget/keys_per_query_with_compressed",
    "budget/ratio_to_dense",
    "throughput/seconds_per_step",
    "partition/share_of_step",
    "model/parameters",
)
"""The metrics of a run that a row holds, and that a comparison may judge by."""
EXAMPLE_FILE = "experiments/partition/compare.py"
EXAMPLES = {
    "EXPERIMENTS": '("experiments/partition/recall.yaml",)',
    "REFERENCES": '("uniform",)',
    "SEEDS": "range(5)",
    "VARIANTS": '{"frame": {"attention.partition.kind": "frame"}}',
    "METRICS": '{"val/accuracy": "maximize"}',
}


@dataclass(frozen=True)
class Comparison:
    """What a comparison file defines: `variants` maps a name to the settings that make it, `references` are the
    variants that all others are tested against, `metrics` maps what is judged to a direction."""

    path: Path
    experiments: tuple[Path, ...]
    variants: dict[str, dict[str, Any]]
    references: tuple[str, ...]
    metrics: dict[str, str]
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        """The file's name, or its folder's where the file is called compare.py."""
        return self.path.resolve().parent.name if self.path.name == "compare.py" else self.path.stem


@dataclass(frozen=True)
class Training:
    """One training of a comparison; its directory names the config's hash, so that another config is another one."""

    experiment: str
    variant: str
    seed: int
    config: ExperimentConfig
    directory: Path


def load_comparison(path: str | Path) -> Comparison:
    """Read a comparison file. Raises NsaLabError that names the file and what it lacks."""
    file = Path(path)
    module = execute(file, "comparison")
    missing = [name for name in NEEDED if not hasattr(module, name)]
    if missing:
        raise NsaLabError(
            f"{file} defines no {', '.join(missing)}; a comparison needs {', '.join(NEEDED)}, as in {EXAMPLE_FILE}"
        )
    for fault in _faults(module):
        raise NsaLabError(f"{file}: {fault}")
    return Comparison(
        path=file,
        experiments=tuple(experiment_file(file, name) for name in module.EXPERIMENTS),
        variants={name: dict(settings) for name, settings in module.VARIANTS.items()},
        references=tuple(module.REFERENCES),
        metrics=dict(module.METRICS),
        seeds=tuple(module.SEEDS),
    )


def _faults(module: ModuleType) -> Iterator[str]:
    """What is wrong with the file's names; later lines may count on earlier ones."""
    for name in ("EXPERIMENTS", "REFERENCES", "SEEDS"):
        value = getattr(module, name)
        if isinstance(value, str) or not isinstance(value, Sequence) or not value:
            yield f"{name} is {value!r}; write a tuple of one or more, such as {EXAMPLES[name]}"
    for name in ("VARIANTS", "METRICS"):
        value = getattr(module, name)
        if not isinstance(value, dict) or not value:
            yield f"{name} is {value!r}; write a dict of one or more, such as {EXAMPLES[name]}"
    for variant, settings in module.VARIANTS.items():
        if not isinstance(settings, dict):
            yield f"VARIANTS maps {variant} to {settings!r}; write its settings as a dict, {{}} for none"
        if unfit := unfit_for_a_folder(str(variant)):
            yield f"VARIANTS has {variant!r}, which cannot name a folder: {unfit}"
    strangers = [name for name in module.REFERENCES if name not in module.VARIANTS]
    if strangers:
        yield f"REFERENCES names {', '.join(map(str, strangers))}, of which VARIANTS knows nothing"
    unknown = [name for name in module.METRICS if name not in MEASURED]
    if unknown:
        yield f"METRICS names {', '.join(map(str, unknown))}; a comparison can judge by {', '.join(MEASURED)}"
    wrong = {name: way for name, way in module.METRICS.items() if way not in ("maximize", "minimize")}
    if wrong:
        yield f"METRICS maps a metric to maximize or minimize, not to {wrong}"
    if not all(isinstance(seed, int) for seed in module.SEEDS):
        yield f"SEEDS is {module.SEEDS!r}; seeds are whole numbers"


def chosen(comparison: Comparison, variants: Iterable[str], seeds: int | None) -> tuple[list[str], list[int]]:
    """The variants (all, or those named) and the first `seeds` seeds. Raises NsaLabError on an unknown name."""
    names = list(variants) or list(comparison.variants)
    unknown = [name for name in names if name not in comparison.variants]
    if unknown:
        raise NsaLabError(
            f"{comparison.path} has no variant {', '.join(unknown)}; known: {', '.join(comparison.variants)}"
        )
    count = len(comparison.seeds) if seeds is None else seeds
    if not 1 <= count <= len(comparison.seeds):
        raise NsaLabError(f"--seeds {count}: {comparison.path} has {len(comparison.seeds)} seeds")
    return names, list(comparison.seeds[:count])


def trainings(
    comparison: Comparison, variants: Sequence[str], seeds: Sequence[int], overrides: Sequence[str]
) -> list[Training]:
    """Every training, seed by seed, so that an unfinished comparison has whole pairs. Raises ConfigError."""
    found = []
    for seed in seeds:
        for file in comparison.experiments:
            for name in variants:
                settings = {**comparison.variants[name], "seed": seed}
                config = load_config(file, [*overrides, *(f"{key}={json.dumps(v)}" for key, v in settings.items())])
                config.name = f"{file.stem}-{name}-seed{seed}"
                root = Path(config.output.dir) / "comparisons" / comparison.name
                directory = root / f"{config.name}-{config_hash(config)}"
                found.append(Training(file.stem, name, seed, config, directory))
    return found
