"""A run's directory: whose it is, what is in it, and whether the run there is over."""

import shutil
from pathlib import Path
from typing import Any

from nsa_lab.config import ExperimentConfig, as_added, config_hash, identity, load_saved_config, to_yaml
from nsa_lab.errors import NsaLabError
from nsa_lab.files import METRICS, SUMMARY, read_json, read_metrics, write_text, writing
from nsa_lab.tracking.record import Record, set_aside

Series = dict[str, dict[int, float]]


class RunDirectory:
    """Holds config.yaml, origin.json (the code and machine that trained last), checkpoints/, metrics.jsonl, pictures/
    and, once the run is over, summary.json; where a GPU's memory did not do, memory-0.pickle (of the first process)."""

    def __init__(self, path: Path):
        self.path = path
        self.config, self.origin, self.summary = path / "config.yaml", path / "origin.json", path / SUMMARY
        self.checkpoints, self.metrics, self.pictures = path / "checkpoints", path / METRICS, path / "pictures"

    @classmethod
    def prepare(cls, config: ExperimentConfig, path: Path | None, write: bool = True) -> "RunDirectory":
        """Create the directory of `config`, or find it there. Raises NsaLabError where it is another config's.

        Unless `write` nothing is looked at or touched.
        """
        path = path or Path(config.output.dir) / f"{config.name}-{config_hash(config)}"
        directory = cls(path.absolute())
        if not write:
            return directory
        with writing(path, "choose another run directory with output.dir=DIR"):
            path.mkdir(parents=True, exist_ok=True)
            if directory.config.exists():
                directory._check_owner(config)
            write_text(directory.config, to_yaml(config))
        return directory

    def _check_owner(self, config: ExperimentConfig) -> None:
        there = load_saved_config(self.config)
        if config_hash(there) != config_hash(config):
            raise NsaLabError(
                f"{self.path} belongs to another config (hash {config_hash(there)}, this one is {config_hash(config)};"
                f" {_differences(there, config)}); choose another directory, or delete that one"
            )

    def result(self) -> dict[str, Any] | None:
        """The summary of a run that reached its last step, or None. Raises NsaLabError where it is damaged."""
        keys, remedy = ("metrics", "stopped", "tracking_id"), "start over with training.resume=false"
        summary = read_json(self.summary, remedy, keys)
        metrics = summary.get("metrics", {})
        if not isinstance(metrics, dict) or not all(isinstance(value, int | float) for value in metrics.values()):
            raise NsaLabError(f"{self.summary} is damaged (its metrics are no numbers by name); {remedy}")
        if not isinstance(summary.get("seconds"), int | float | None):
            raise NsaLabError(f"{self.summary} is damaged (its seconds are no number); {remedy}")
        return summary if summary and not summary["stopped"] else None

    def memory(self, rank: int | str) -> Path:
        """Where process `rank` writes what held its GPU's memory."""
        return self.path / f"memory-{rank}.pickle"

    def clear(self) -> None:
        """Remove what an earlier run left; its tracking record is kept under numbered names.

        Raises NsaLabError while another process trains here.
        """
        if Record.load(self.path) is None:
            return
        record = Record.take(self.path)
        if record is None:
            raise NsaLabError(f"another process trains in {self.path}; end it first, or choose another name")
        record.unlock()
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        self.summary.unlink(missing_ok=True)
        for snapshot in self.path.glob(self.memory("*").name):
            snapshot.unlink()
        set_aside(self.path)


def _differences(there: ExperimentConfig, here: ExperimentConfig) -> str:
    ours, theirs = (as_added() | identity(config) for config in (here, there))
    keys = [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]
    some = ", ".join(f"{key}={theirs.get(key)} there, {ours.get(key)} here" for key in keys[:3])
    return f"{some} and {len(keys) - 3} more" if len(keys) > 3 else some


def read_series(metrics: Path) -> Series:
    """Every metric by step. A step recorded again after a resume counts as it was recorded last.

    Raises NsaLabError where a line is damaged.
    """
    series: Series = {}
    for step, values in read_metrics(metrics):
        for name, value in values.items():
            series.setdefault(name, {})[step] = value
    return series
