"""What a comparison is: which designs, on which experiments, judged by what, against whom. Read from a Python file;
`nsa_lab.comparison.ablation` reads one from YAML."""

import ast
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from nsa_lab.config import ExperimentConfig, load_config
from nsa_lab.errors import ConfigError, NsaLabError
from nsa_lab.files import unfit_for_a_folder
from nsa_lab.runner.python_file import execute, experiment_file

NEEDED = ("EXPERIMENTS", "VARIANTS", "REFERENCES", "METRICS", "SEEDS")
TASK_ACCURACY = "val/accuracy/"
"""What comes before a task's name in the metric of that task alone, which rows hold too."""
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
START = "start"
"""The variant's name of the run that an experiment's designs start from."""
KINDS = (START, "design", "validation")
EXAMPLE_FILE = "experiments/partition/compare.py"
EXAMPLES = {
    "EXPERIMENTS": '("experiments/partition/recall.yaml",)',
    "REFERENCES": '("uniform",)',
    "SEEDS": "range(5)",
    "VARIANTS": '{"frame": {"attention.partition.kind": "frame"}}',
    "METRICS": '{"val/accuracy": "maximize"}',
}


@dataclass(frozen=True)
class Experiment:
    """What all designs of a comparison are trained on: a YAML with `settings` on top, under a name of its own.

    With `weights`, the name of another experiment, designs are not trained but validated on the weights that its
    `design` was trained to, or, those of `converted`, to which they were trained there themselves. With `start` each
    seed's designs start from one run of these settings. Of one that is not `asked` for only what others start from is
    trained.
    """

    name: str
    file: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    start: Mapping[str, Any] | None = None
    weights: str | None = None
    design: str | None = None
    asked: bool = True
    converted: Sequence[str] = ()

    @classmethod
    def of(cls, file: Path) -> "Experiment":
        return cls(file.stem, file)


@dataclass(frozen=True)
class Comparison:
    """What a comparison file defines: `variants` maps a name to the settings that make it, `references` are the
    variants that all others are tested against, `metrics` maps what is judged to a direction. `branches` are those of
    each variant, where tables have a check mark for them. `asked` are the options with which its file was read, and
    `command` is all that was typed, as far as it decides what is trained."""

    path: Path
    experiments: tuple[Experiment, ...]
    variants: Mapping[str, Mapping[str, Any]]
    references: tuple[str, ...]
    metrics: Mapping[str, str]
    seeds: tuple[int, ...]
    preset: str = ""
    question: str = ""
    branches: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    asked: tuple[str, ...] = ()
    command: str = ""

    @property
    def title(self) -> str:
        """The name, and what was typed for it."""
        return f"{self.name} (`{self.command}`)" if self.command else self.name

    @property
    def name(self) -> str:
        """The file's name, or its folder's where the file is called compare.py, and the preset's."""
        own = self.path.resolve().parent.name if self.path.name == "compare.py" else self.path.stem
        return f"{own}-{self.preset}" if self.preset else own

    def experiment(self, name: str) -> Experiment:
        return next(one for one in self.experiments if one.name == name)


@dataclass(frozen=True)
class Training:
    """One training of a comparison, or validation on the weights of the training `source`.

    Its directory names the config's hash, so that another config is another one. A `source` counts in the hash by its
    directory's name, wherever it is.
    """

    experiment: str
    variant: str
    seed: int
    config: ExperimentConfig
    directory: Path
    source: "Training | None" = None

    @property
    def kind(self) -> str:
        """One of KINDS."""
        if self.variant == START:
            return START
        return "design" if self.source is None or self.source.variant == START else "validation"

    @property
    def depth(self) -> int:
        """How many trainings have to be over before this one."""
        return 0 if self.source is None else self.source.depth + 1


def load_comparison(path: str | Path) -> Comparison:
    """Read a comparison's Python file. Raises NsaLabError that names the file and what it lacks."""
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
        experiments=tuple(Experiment.of(experiment_file(file, name)) for name in module.EXPERIMENTS),
        variants={name: dict(settings) for name, settings in module.VARIANTS.items()},
        references=tuple(module.REFERENCES),
        metrics=dict(module.METRICS),
        seeds=tuple(module.SEEDS),
        question=(ast.get_docstring(ast.parse(file.read_text())) or "").split("\n\n")[0],
    )


def is_measured(metric: str) -> bool:
    """Whether rows hold this metric."""
    return metric in MEASURED or metric.startswith(TASK_ACCURACY)


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
    if START in module.VARIANTS:
        yield f"VARIANTS has {START!r}, the name of what others start from; choose another"
    for variant, settings in module.VARIANTS.items():
        if not isinstance(settings, dict):
            yield f"VARIANTS maps {variant} to {settings!r}; write its settings as a dict, {{}} for none"
        if unfit := unfit_for_a_folder(str(variant)):
            yield f"VARIANTS has {variant!r}, which cannot name a folder: {unfit}"
    strangers = [name for name in module.REFERENCES if name not in module.VARIANTS]
    if strangers:
        yield f"REFERENCES names {', '.join(map(str, strangers))}, of which VARIANTS knows nothing"
    for key in ("EXPERIMENTS", "REFERENCES", "SEEDS"):
        yield from named_twice(key, getattr(module, key))
    unknown = [name for name in module.METRICS if not is_measured(name)]
    if unknown:
        yield f"METRICS names {', '.join(map(str, unknown))}; a comparison can judge by {', '.join(MEASURED)}"
    wrong = {name: way for name, way in module.METRICS.items() if way not in ("maximize", "minimize")}
    if wrong:
        yield f"METRICS maps a metric to maximize or minimize, not to {wrong}"
    if not all(isinstance(seed, int) for seed in module.SEEDS):
        yield f"SEEDS is {module.SEEDS!r}; seeds are whole numbers"


def named_twice(key: str, names: Sequence[Any]) -> Iterator[str]:
    """A fault where the list `key` of a file has one of its `names` twice."""
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        yield f"{key} names {twice[0]} twice; name it once"


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
        raise NsaLabError(
            f"--seeds {count}: {comparison.path} has {len(comparison.seeds)} seed{'s' * (len(comparison.seeds) > 1)}"
        )
    return names, list(comparison.seeds[:count])


def variant_config(
    name: str, file: Path, overrides: Sequence[str] | Mapping[str, Any], shared: Collection[str] = ()
) -> ExperimentConfig:
    """The config of a variant, its faults under its name, but for those of the `shared` keys. Raises ConfigError."""
    try:
        return load_config(file, overrides)
    except ConfigError as error:
        raise ConfigError(
            [p if p.path in shared else replace(p, path=f"{name}: {p.path}") for p in error.problems]
        ) from error
