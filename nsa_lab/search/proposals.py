"""Designs as the study proposes them: a trial of its sampler, and the config that the sweep file makes of it."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from nsa_lab.config import ExperimentConfig, config_hash
from nsa_lab.errors import ConfigError
from nsa_lab.search.recovery import next_trial, original_number
from nsa_lab.search.rows import trial_name
from nsa_lab.search.samplers import build_pruner, build_sampler
from nsa_lab.search.spec import Sweep, constraint_values, design, suggested

STUBBORN = 5
"""Designs in a row that need no training after which the next is drawn at random: TPE goes on proposing what was
best."""


class Infeasible(Exception):
    """A design that breaks a rule or a constraint; it is not trained."""


@dataclass(frozen=True)
class Drawn:
    """A design handed out as `trial`: its config, or why it is infeasible (`refusal`); `twin` is the earlier trial of
    the same design, which makes a training needless."""

    trial: optuna.Trial
    config: ExperimentConfig | None = None
    refusal: str = ""
    twin: FrozenTrial | None = None


@dataclass(frozen=True)
class Proposals:
    """Proposes designs of `sweep` on the base experiment `base` to the process `owner`.

    prunes: whether trials may be stopped early. started: whether every design starts from a run of the study's own.
    """

    study: optuna.Study
    storage: Any
    sweep: Sweep
    base: Mapping[str, Any]
    seed: int
    owner: Mapping[str, Any]
    prunes: bool
    started: bool

    def ask(self, barren: int, stop: Callable[[], None]) -> optuna.Trial:
        """A trial whose draws follow from seed and number: its sampler, so its study, are its own.

        barren: so many before it needed no training. stop: what the sampler calls that has no design left.
        """
        name = self.sweep.sampler if barren < STUBBORN or self.sweep.sampler == "brute" else "random"
        asked = next_trial(self.study, self.owner)
        study = optuna.load_study(
            study_name=self.study.study_name,
            storage=self.storage,
            sampler=build_sampler(name, (self.seed * 1_000_003 + asked.number) % 2**32),
            pruner=build_pruner(self.sweep.pruner if self.prunes else None),
        )
        study.stop = stop
        return optuna.Trial(study, asked._trial_id)

    def design(self, trial: optuna.Trial) -> ExperimentConfig:
        """The trial's config; its constraints are set on the trial either way. Raises Infeasible."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the study's first probes have given them, once and for all
            values = suggested(self.sweep, trial)
        trial.set_user_attr("overrides", values)
        try:
            config = design(self.base, values, f"{self.study.study_name}-{trial_name(original_number(trial))}")
        except ConfigError as error:
            trial.set_constraint("config", float(len(error.problems)))
            raise Infeasible("; ".join(str(problem) for problem in error.problems)) from error
        trial.set_constraint("config", 0.0)
        limits = constraint_values(self.sweep, config)
        for key, value in limits.items():
            trial.set_constraint(key, value)
        trial.set_user_attr("config_hash", config_hash(self._everywhere(config)))
        broken = [f"constraint {key} is {value:g}" for key, value in limits.items() if value > 0]
        if broken:
            raise Infeasible("; ".join(broken))
        return config

    def _everywhere(self, config: ExperimentConfig) -> ExperimentConfig:
        """A design as it is called on every machine: with the starting run's folder where the study was created."""
        path = self.study.user_attrs["base"]["model.path"] if self.started else config.model.path
        return replace(config, model=replace(config.model, path=path))
