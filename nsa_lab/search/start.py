"""Conversion: the run that every design of a study starts from, as VideoNSA starts from dense Qwen2.5-VL."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from rich.console import Console

from nsa_lab.errors import NsaLabError
from nsa_lab.runner.job import End, Job, JobList
from nsa_lab.runner.pool import Pool
from nsa_lab.runner.view import Shown, View
from nsa_lab.search.seeds import jobs_of
from nsa_lab.search.spec import Sweep, design

NAME = "start"
"""What its folder, its run's kind and the study attribute with what it measured are called."""


@dataclass(frozen=True)
class Start:
    """The jobs of the base experiment with the settings START, by seed; a job's folder is its designs' model.path."""

    jobs: Mapping[int, Job]

    @classmethod
    def of(cls, sweep: Sweep, base: Mapping[str, Any], study: str, home: Path, seeds: int) -> "Start | None":
        """What a sweep's START says, to stand in the study's folder `home`. Raises ConfigError where it cannot be."""
        if sweep.start is None:
            return None
        name = f"{study}-{NAME}"
        tags = {"kind": NAME, "study": study, "mlflow.runName": name}
        return cls(jobs_of(design(base, sweep.start, name), NAME, home / NAME, tags, seeds))

    @property
    def path(self) -> str:
        """The folder of the first seed's run."""
        return next(iter(self.jobs.values())).directory

    def lead(self, job: Job, seed: int) -> Job:
        """`job`, a design's with this seed, starting from the run of that seed."""
        model = {**job.config["model"], "path": self.jobs[seed].directory}
        return replace(job, config={**job.config, "model": model})

    def train(
        self, study: optuna.Study, run: str, workers: int, logs: Path, console: Console, metrics: Sequence[str]
    ) -> None:
        """Train what is missing. Raises NsaLabError where one fails, since no design can be trained then."""
        known = study.user_attrs.get(NAME, {})
        missing = [j for j in self.jobs.values() if not (j.directory in known and Path(j.directory).is_dir())]
        if not missing:
            return
        view = View(console, "starting runs", metrics, len(missing))
        ends: dict[str, End] = {}

        def tell(job: Job, end: End) -> str | None:
            ends[job.directory] = end
            values = {name: end.metrics[name] for name in metrics if name in end.metrics}
            note = end.fault or "what every design starts from"
            view.finished(Shown(job.name, "failed" if end.fault else "complete", values, end.seconds, note))
            return end.fault

        parent = study.user_attrs.get("tracking_id")
        jobs = [replace(job, run=run, parent=parent) for job in missing]
        Pool(JobList(jobs, tell), run, workers, logs, view).work()
        for folder, end in ends.items():
            if end.fault:
                raise NsaLabError(f"{folder}, which every design starts from, failed: {end.fault}")
        study.set_user_attr(NAME, known | {folder: dict(end.metrics) for folder, end in ends.items()})
