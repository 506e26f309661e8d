"""An ablation file: named variants over one base experiment, as YAML. It becomes a comparison."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from nsa_lab.attention.branches import BRANCHES
from nsa_lab.comparison.spec import (
    START,
    TASK_ACCURACY,
    Comparison,
    Experiment,
    load_comparison,
    named_twice,
    variant_config,
)
from nsa_lab.config import load_config
from nsa_lab.config.load import read_yaml
from nsa_lab.config.rules import enabled_tasks
from nsa_lab.errors import NsaLabError
from nsa_lab.files import unfit_for_a_folder
from nsa_lab.plugin import settings, switched_on
from nsa_lab.runner.python_file import experiment_file

YAML = (".yaml", ".yml")
AT, BOTH = ("training", "inference"), "both"
EXAMPLE_FILE = "experiments/ablations/branches.yaml"
LISTS = ("at", "weights", "converted", "references")
DENSE = {"attention.method": "dense"}
Settings = dict[str, Any]


@dataclass(frozen=True)
class Ablation:
    """The keys of an ablation file.

    `variants` are settings by dotted key under a name; with `subsets` every set of branches is one more, and `dense`.
    `at` says whether a variant is trained, or validated with the weights of each of the variants `weights` (by default
    the first reference), or both; the variants `converted` are validated with the weights of their own training.
    `readings` are settings under which everything is done once more, each with a name. `start` are the settings of the
    run that every training starts from (conversion), none: from random weights. `presets` replace keys of the file, by
    name.
    """

    base: str = ""
    settings: Settings = field(default_factory=dict)
    start: Settings | None = None
    seeds: int = 3
    at: Sequence[str] = ("training",)
    weights: Sequence[str] = ()
    converted: Sequence[str] = ()
    readings: dict[str, Settings] = field(default_factory=dict)
    subsets: bool = False
    variants: dict[str, Settings] = field(default_factory=dict)
    references: Sequence[str] = ()
    presets: dict[str, Settings] = field(default_factory=dict)


def is_comparison_file(path: Path) -> bool:
    """Whether `path` is named like a file that `read_comparison` reads."""
    return path.suffix in (".py", *YAML)


def read_comparison(path: str | Path, preset: str = "", at: str = "", seeds: int | None = None) -> Comparison:
    """The comparison of a Python file, or of an ablation file with a `preset`, `at` (one of AT, or both) and `seeds`.

    Raises NsaLabError that names the file and what is wrong with it.
    """
    file = Path(path)
    if file.suffix in YAML:
        ablation = _ablation(file, preset, at)
        comparison = _comparison(file, ablation if seeds is None else replace(ablation, seeds=seeds), preset)
        asked = [("--preset", preset), ("--at", at), ("--seeds", "" if seeds is None else str(seeds))]
        return replace(comparison, asked=tuple(text for option in asked if option[1] for text in option))
    if not is_comparison_file(file):
        raise NsaLabError(f"{file} is no comparison; name an ablation's YAML, such as {EXAMPLE_FILE}, or a Python file")
    if preset or at or seeds is not None:
        raise NsaLabError(f"{file} is no ablation's YAML, such as {EXAMPLE_FILE}; `nsa-lab compare` takes Python files")
    return load_comparison(file)


def _ablation(file: Path, preset: str, at: str) -> Ablation:
    ablation = Ablation(**_checked(file, "", read_yaml(file)))
    if preset:
        if preset not in ablation.presets:
            known = ", ".join(ablation.presets) or "none"
            raise NsaLabError(f"{file} has no preset {preset}; it has {known}")
        ablation = replace(ablation, **_checked(file, f"presets.{preset}.", ablation.presets[preset]))
    if at:
        ablation = replace(ablation, at=at)
    given = ablation.at
    return replace(ablation, at=AT if given == BOTH else (given,) if isinstance(given, str) else given)


def _comparison(file: Path, ablation: Ablation, preset: str) -> Comparison:
    variants = (_subsets() if ablation.subsets else {}) | ablation.variants
    ablation = replace(ablation, variants=variants, references=ablation.references or tuple(variants)[:1])
    for fault in _faults(ablation):
        raise NsaLabError(f"{file}: {fault}; see {EXAMPLE_FILE}")
    base = experiment_file(file, ablation.base)
    config = load_config(base, ablation.settings)
    tasks = [f"{TASK_ACCURACY}{name}" for name in enabled_tasks(config)]
    metrics = [*(tasks if len(tasks) > 1 else []), "val/accuracy"]
    return Comparison(
        path=file,
        experiments=tuple(_experiments(ablation, base)),
        variants=variants,
        references=tuple(ablation.references),
        metrics=dict.fromkeys(metrics, "maximize") | {"val/loss": "minimize"},
        seeds=tuple(range(ablation.seeds)),
        preset=preset,
        question=_question(file),
        branches={name: _branches(name, base, {**ablation.settings, **own}) for name, own in variants.items()},
    )


def _branches(name: str, base: Path, given: Settings) -> tuple[str, ...]:
    """The branches of a design; none of another method's."""
    own = settings(variant_config(name, base, given).attention, "method")
    return tuple(switched_on(own.branches)) if hasattr(own, "branches") else ()


def _experiments(ablation: Ablation, base: Path) -> Iterator[Experiment]:
    for reading, values in (ablation.readings or {"": {}}).items():
        trained = f"{base.stem}-{reading}" if reading else base.stem
        given = {**ablation.settings, **values}
        training = Experiment(trained, base, given, ablation.start)
        yield replace(training, asked="training" in ablation.at)
        for design in _weights(ablation) if "inference" in ablation.at else ():
            name = f"{trained}-inference" if len(_weights(ablation)) == 1 else f"{trained}-weights-of-{design}"
            own = tuple(ablation.converted)
            yield Experiment(name, base, given, weights=trained, design=design, converted=own)


def _weights(ablation: Ablation) -> Sequence[str]:
    return ablation.weights or ablation.references[:1]


def _subsets() -> dict[str, Settings]:
    """Every set of branches as a design, and dense attention, the largest first."""
    sets = [s for size in range(len(BRANCHES), 0, -1) for s in combinations(BRANCHES, size)]
    return {
        "+".join(chosen): {f"attention.branches.{name}.enabled": name in chosen for name in BRANCHES} for chosen in sets
    } | {"dense": DENSE}


def _checked(file: Path, place: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of an ablation or of a preset, each of its type. Raises NsaLabError that names one which is not."""
    kinds = {f.name: f.type for f in fields(Ablation)}
    plain = {int: int, str: str, bool: bool}
    for key, value in tree.items():
        _check_texts(file, f"{place}{key}", key, value)
        if key not in kinds or (place and key == "presets"):
            near = difflib.get_close_matches(str(key), kinds, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(kinds)}"
            raise NsaLabError(f"{file}: {place}{key} is no key of an ablation; {hint}")
        kind = kinds[key]
        if kind in plain and (not isinstance(value, plain[kind]) or isinstance(value, bool) != (kind is bool)):
            raise NsaLabError(
                f"{file}: {place}{key} is {value!r}; write {'true or false' if kind is bool else kind.__name__}"
            )
        if kind not in plain and key not in LISTS and not isinstance(value, dict) and (key, value) != ("start", None):
            raise NsaLabError(
                f"{file}: {place}{key} is {value!r}; write keys and values, such as {{training.steps: 200}}"
            )
    return dict(tree)


def _check_texts(file: Path, place: str, key: str, value: Any) -> None:
    """Raise NsaLabError where a list of names, or the names of a mapping, are not texts (YAML reads `on` as true)."""
    if key in LISTS and not isinstance(value, list | str):
        raise NsaLabError(f"{file}: {place} is {value!r}; write a list of names")
    names = value if key in LISTS and isinstance(value, list) else value if isinstance(value, dict) else ()
    if strange := [name for name in names if not isinstance(name, str)]:
        raise NsaLabError(f'{file}: {place} has {strange[0]!r}, which YAML reads as no text; quote it: "{strange[0]}"')
    for name in value if key == "presets" and isinstance(value, dict) else ():
        if unfit := unfit_for_a_folder(name):
            raise NsaLabError(f"{file}: {place} has {name!r}, which cannot name a folder: {unfit}")
        if not isinstance(value[name], dict):
            raise NsaLabError(f"{file}: {place} maps {name} to {value[name]!r}; write the keys that it replaces")
    for name in value if key in ("variants", "readings") and isinstance(value, dict) else ():
        if isinstance(value[name], dict):
            _check_texts(file, f"{place}.{name}", "settings", value[name])


def _faults(ablation: Ablation) -> Iterator[str]:
    """What is wrong with an ablation; later lines may count on earlier ones."""
    if not ablation.base:
        yield "base is missing; name the YAML of an experiment"
    if ablation.seeds < 1:
        yield f"seeds is {ablation.seeds}; use 1 or more"
    if not ablation.variants:
        yield "variants is empty; name one or more, or set subsets: true"
    if START in ablation.variants:
        yield f"variants has {START!r}, the name of what others start from; choose another"
    for family, named in (("variants", ablation.variants), ("readings", ablation.readings)):
        for name, values in named.items():
            if not isinstance(values, dict):
                yield f"{family} maps {name} to {values!r}; write its settings, {{}} for none"
            if unfit := unfit_for_a_folder(str(name)):
                yield f"{family} has {name!r}, which cannot name a folder: {unfit}"
    for key, names in (
        ("references", ablation.references),
        ("weights", _weights(ablation)),
        ("converted", ablation.converted),
    ):
        strangers = (
            [names] if isinstance(names, str) else [str(name) for name in names if name not in ablation.variants]
        )
        if strangers:
            yield f"{key} names {', '.join(strangers)}; write a list of variants, of {', '.join(ablation.variants)}"
    for key in LISTS:
        yield from named_twice(key, getattr(ablation, key))
    if ablation.converted and "inference" not in ablation.at:
        yield "converted says whose own weights are validated, and nothing is: set at: inference"
    if not ablation.at or (unknown := [str(name) for name in ablation.at if name not in AT]):
        yield f"at is {', '.join(unknown) if ablation.at else 'empty'}; use {', '.join((*AT, BOTH))}, or a list"


def _question(file: Path) -> str:
    """What the comment at the head of an ablation file says, up to a line without one."""
    lines = re.match(r"((?:#.*\n)*)", file.read_text())
    return "\n".join(line.removeprefix("#").strip() for line in lines[1].splitlines()) if lines else ""
