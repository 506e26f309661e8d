"""Conversion: the run that every design of a study starts from, as VideoNSA starts from dense Qwen2.5-VL."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from rich.console import Console

from nsa_lab.config import ExperimentConfig, to_dict
from nsa_lab.errors import NsaLabError
from nsa_lab.runner.job import End, Job, JobList
from nsa_lab.runner.pool import Pool
from nsa_lab.runner.view import Shown, View
from nsa_lab.search.spec import Sweep, design

NAME = "start"
"""What its folder, its run's kind and the study attribute with what it measured are called."""


@dataclass(frozen=True)
class Start:
    """One run a seed, of the base experiment with the settings START; its folder is the designs' model.path."""

    folders: Mapping[int, str]
    config: ExperimentConfig

    @classmethod
    def of(cls, sweep: Sweep, base: Mapping[str, Any], study: str, seeds: int) -> "Start | None":
        """What a sweep's START says, if it says anything. Raises NsaLabError where the base does not allow it."""
        if sweep.start is None:
            return None
        config = design(base, sweep.start, f"{study}-{NAME}")
        home = Path(config.output.dir) / "studies" / study / NAME
        drawn = range(config.seed, config.seed + seeds)
        return cls({seed: str(home if seeds == 1 else home / f"seed-{seed}") for seed in drawn}, config)

    @property
    def path(self) -> str:
        """The folder of the first seed's run."""
        return next(iter(self.folders.values()))

    def train(
        self, study: optuna.Study, run: str, workers: int, logs: Path, console: Console, metrics: Sequence[str]
    ) -> None:
        """Train what is missing. Raises NsaLabError where one fails, since no design can be trained then."""
        known = study.user_attrs.get(NAME, {})
        there = {folder for folder in known if Path(folder).is_dir()}
        missing = {folder: seed for seed, folder in self.folders.items() if folder not in there}
        view = View(console, "starting runs", metrics, len(missing))
        ends: dict[str, End] = {}

        def tell(job: Job, end: End) -> str | None:
            ends[job.directory] = end
            values = {name: end.metrics[name] for name in metrics if name in end.metrics}
            note = end.fault or "what every design starts from"
            view.finished(Shown(job.name, "failed" if end.fault else "complete", values, end.seconds, note))
            return end.fault

        jobs = [self._job(seed, folder, study, run) for folder, seed in missing.items()]
        if jobs:
            Pool(JobList(jobs, tell), run, workers, logs, view).work()
        for folder, end in ends.items():
            if end.fault:
                raise NsaLabError(f"{folder}, which every design starts from, failed: {end.fault}")
        study.set_user_attr(NAME, known | {folder: dict(end.metrics) for folder, end in ends.items()})

    def _job(self, seed: int, folder: str, study: optuna.Study, run: str) -> Job:
        name = NAME if len(self.folders) == 1 else f"{NAME}-seed-{seed}"
        tags = {"kind": NAME, "study": study.study_name, "mlflow.runName": f"{study.study_name}-{name}"}
        parent = study.user_attrs.get("tracking_id")
        return Job(name, {**to_dict(self.config), "seed": seed}, folder, run, tags, parent)
