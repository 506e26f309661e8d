"""Which trainings a comparison needs, and which of them have to wait for others."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nsa_lab.comparison.spec import KINDS, START, Comparison, Experiment, Training, variant_config
from nsa_lab.config import config_hash
from nsa_lab.config.load import parse_overrides, unlike
from nsa_lab.errors import ConfigError, NsaLabError
from nsa_lab.files import SUMMARY
from nsa_lab.runner.recovery import last_checkpoint

OWN = ("seed", "name", "output", "tracking")
"""Settings of the comparison itself; a variant that had its own would leave it."""
VALIDATE_ONLY = {"training.steps": 0, "training.warmup_steps": 0}


def trainings(
    comparison: Comparison, variants: Sequence[str], seeds: Sequence[int], overrides: Sequence[str]
) -> list[Training]:
    """Every training with the `overrides`, seed by seed, so that an unfinished comparison has whole pairs.

    Overrides count above what the experiments set and below what makes a variant or a start; those of a key that a
    variant sets are refused. What another one starts from comes before it, asked for or not. Raises NsaLabError.
    """
    _check_names(comparison)
    _check_keys(comparison, parse_overrides(overrides))
    plan = _Plan(comparison, overrides)
    for seed in seeds:
        for experiment in comparison.experiments:
            for name in variants if experiment.asked else ():
                plan.design(experiment, name, seed)
    found = list(plan.known.values())
    if len({training.directory for training in found}) < len(found):
        raise NsaLabError(f"{comparison.path}: names of readings and variants run into each other; rename some")
    return found


def _check_names(comparison: Comparison) -> None:
    """Raise NsaLabError where two experiments have one name, under which the second would be lost."""
    names = [one.name for one in comparison.experiments]
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise NsaLabError(f"{comparison.path}: two experiments are called {twice[0]}; rename a file or a reading")


def _check_keys(comparison: Comparison, overrides: Mapping[str, Any]) -> None:
    """Raise NsaLabError where a variant, or an override, sets what is not its own."""
    led = any(one.start is not None or one.weights is not None for one in comparison.experiments)
    path = ["model.path"] if led else []
    for name, settings in comparison.variants.items():
        for key in settings:
            if str(key).partition(".")[0] in OWN or key in path:
                raise NsaLabError(f"{comparison.path}: variant {name} sets {key}, which all share; leave it out")
            if key in overrides:
                raise NsaLabError(
                    f"{key} is what makes variant {name} of {comparison.path}; leave it off the command line"
                )
    if taken := [key for key in ("seed", "name", *path) if key in overrides]:
        raise NsaLabError(f"{taken[0]} is set for each training of {comparison.path}; leave it off the command line")


class _Plan:
    """The trainings made so far, by experiment, variant and seed."""

    def __init__(self, comparison: Comparison, overrides: Sequence[str]):
        self.comparison, self.overrides = comparison, overrides
        self.known: dict[tuple[str, str, int], Training] = {}

    def design(self, experiment: Experiment, name: str, seed: int) -> Training:
        """A design's training, or its validation where the experiment takes weights of another."""
        settings, source = dict(self.comparison.variants[name]), None
        if experiment.weights is not None and experiment.design is not None:
            trained = name if name in experiment.converted else experiment.design
            source = self.design(self.comparison.experiment(experiment.weights), trained, seed)
            settings |= VALIDATE_ONLY
        elif experiment.start is not None:
            source = self._training(experiment, START, dict(experiment.start), seed, None)
        return self._training(experiment, name, settings, seed, source)

    def _training(
        self, experiment: Experiment, name: str, settings: Mapping[str, Any], seed: int, source: Training | None
    ) -> Training:
        key = (experiment.name, name, seed)
        if key not in self.known:
            above = [f"{key}={json.dumps(value)}" for key, value in {**settings, "seed": seed}.items()]
            below = [f"{key}={json.dumps(value)}" for key, value in experiment.settings.items()]
            typed = parse_overrides(self.overrides)
            config = variant_config(name, experiment.file, [*below, *self.overrides, *above], typed)
            # A start is nobody's own: comparisons that start alike share it.
            config.name = f"{name}-seed{seed}" if name == START else f"{experiment.name}-{name}-seed{seed}"
            if source is not None:
                config.model = dataclasses.replace(config.model, path=source.directory.name)
                if problems := list(unlike(config, source.config)):
                    raise ConfigError([dataclasses.replace(p, path=f"{name}: {p.path}") for p in problems])
            owner = f"{START}s" if name == START else self.comparison.name
            directory = Path(config.output.dir) / "comparisons" / owner / f"{config.name}-{config_hash(config)}"
            self.known[key] = Training(experiment.name, name, seed, config, directory, source)
        return self.known[key]


def needed(missing: Sequence[Training]) -> list[Training]:
    """The `missing` trainings, and those they start from that left no weights; what one starts from comes before it."""
    found = {training.directory: training for training in missing}
    for training in missing:
        source = training.source
        while source is not None and not last_checkpoint(source.directory):
            if (source.directory / SUMMARY).exists():
                source.config.training.resume = False  # it is over, and its weights are gone: over again
            found[source.directory] = source
            source = source.source
    return sorted(found.values(), key=lambda training: training.depth)


def makeup(wanted: Sequence[Training]) -> str:
    """How the number of trainings comes about: `1 start x 3 seeds + 6 designs x 3 seeds`."""
    groups = {noun: [training for training in wanted if training.kind == noun] for noun in KINDS}
    return " + ".join(_product(noun, found) for noun, found in groups.items() if found)


def _product(noun: str, found: Sequence[Training]) -> str:
    """`6 designs x 3 seeds x 2 experiments`, without the ones."""
    counts = {
        noun: len({training.variant for training in found}),
        "seed": len({training.seed for training in found}),
        "experiment": len({training.experiment for training in found}),
    }
    assert math.prod(counts.values()) == len(found), counts
    kept = {name: count for name, count in counts.items() if count > 1 or name == noun}
    return " x ".join(f"{count} {name}{'s' * (count > 1)}" for name, count in kept.items())
