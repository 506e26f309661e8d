"""A comparison's trainings as jobs, and the book of those that ended."""

from dataclasses import dataclass, field
from pathlib import Path

from nsa_lab.comparison.rows import ORIGIN, Key, Row, key_of, make_row, write_rows
from nsa_lab.comparison.spec import Training
from nsa_lab.config import to_dict
from nsa_lab.errors import NsaLabError
from nsa_lab.files import read_json
from nsa_lab.runner.job import End, Job
from nsa_lab.runner.view import Shown, View


def name_of(training: Training) -> str:
    """What a training's job is called."""
    return f"{training.experiment} {training.variant} seed {training.seed}"


def job_of(training: Training, comparison: str, parent: str | None, runner: str) -> Job:
    """The job that does a training of a comparison."""
    tags = {"kind": "comparison", "comparison": comparison, "experiment": training.experiment}
    tags |= {"variant": training.variant, "seed": str(training.seed)}
    config = to_dict(training.config)
    if training.source is not None:
        config["model"]["path"] = str(training.source.directory)
    after = None if training.source is None else str(training.source.directory)
    return Job(name_of(training), config, str(training.directory), runner, tags, parent, after=after)


@dataclass
class Ledger:
    """`rows`, which are also in `file`, and the `faults` of trainings that failed. `trainings` are by directory."""

    file: Path
    rows: dict[Key, Row]
    trainings: dict[str, Training]
    view: View
    faults: list[str] = field(default_factory=list)

    def enter(self, job: Job, end: End) -> str | None:
        """Enter how a training ended; returns its fault, if it failed."""
        training, fault = self.trainings[job.directory], end.fault
        try:
            if fault is None:
                self.rows[key_of(training)] = make_row(training, end.metrics, _origin(training))
        except NsaLabError as error:
            fault = str(error)
        if fault is None:
            write_rows(self.file, self.rows.values())
        else:
            self.faults.append(f"{training.config.name}: {fault}")
        values = {name: end.metrics[name] for name in self.view.metrics if name in end.metrics}
        state = "failed" if fault else "complete"
        self.view.finished(Shown(job.name, state, {} if fault else values, end.seconds, fault or ""))
        return fault


def _origin(training: Training) -> dict[str, str]:
    file, remedy = training.directory / "origin.json", f"delete {training.directory} to train it again"
    origin = read_json(file, remedy, ORIGIN)
    if not origin:
        raise NsaLabError(f"{file} does not exist; {remedy}")
    return origin
