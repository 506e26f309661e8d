"""The runs below a folder, read from their files alone: what state each is in, and how it ended."""

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from nsa_lab.errors import NsaLabError
from nsa_lab.files import LOCK, METRICS, SUMMARY, TRACKING, FileLock, no_folder, read_json, read_metrics

MARKS = (TRACKING, SUMMARY)
"""A folder that holds config.yaml and one of these is a run's."""
KEYS = "budget/keys_per_query"
NOT_READ = "not read"
MINUTES = len("2026-01-31 23:59")


@dataclass(frozen=True)
class Row:
    """One run. `fault` says why its files cannot be read (state `damaged`); `step` is the last recorded one; `when` it
    began, to milliseconds; `design`: method, branches and reducer, in words."""

    name: str
    state: str
    step: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    hash: str = ""
    when: str = ""
    fault: str = ""
    design: str = ""

    @property
    def values(self) -> dict[str, Any]:
        """What a table of runs shows, by column; val/* and keys where there are any."""
        shown = {name: value for name, value in self.metrics.items() if name.startswith("val/") or name == KEYS}
        known = {"run": self.name, "design": self.design, "state": self.state, "step": self.step}
        return {**known, **shown, "hash": self.hash, "when": self.when[:MINUTES]}


def list_runs(folder: Path) -> list[Row]:
    """The runs in and below `folder`, the last begun first. Raises NsaLabError where there are none."""
    homes = find_runs(folder)
    if not homes:
        what = "holds no runs" if folder.is_dir() else no_folder(folder)
        raise NsaLabError(f"{folder} {what}; give the folder that `nsa-lab train` wrote into (output.dir)")
    rows = [read_run(home, str(home.relative_to(folder)) if home != folder else home.resolve().name) for home in homes]
    return sorted(rows, key=lambda row: row.when, reverse=True)


def find_runs(folder: Path) -> list[Path]:
    """The runs' folders in and below `folder`, by name."""
    found = sorted(file.parent for file in folder.rglob("config.yaml"))
    return [home for home in found if any((home / mark).is_file() for mark in MARKS)]


def read_run(home: Path, name: str) -> Row:
    """The run in the folder `home`, to be called `name`."""
    try:
        summary = read_json(home / SUMMARY, "", ("metrics", "stopped", "config_hash"))
        record, tags = (read_json(home / file, "") for file in (TRACKING, "tags.json"))
        step, last = _recorded(home / METRICS)
        metrics = {key: float(value) for key, value in {**last, **(summary.get("metrics") or {})}.items()}
        began = datetime.fromtimestamp(int(record["started"]) / 1000).isoformat(" ", "milliseconds") if record else ""
    except (NsaLabError, OSError, ValueError, TypeError, LookupError, OverflowError) as error:
        return Row(name, "damaged", fault=" ".join(str(error).split()).removesuffix(";"))
    known = str(summary.get("config_hash") or tags.get("config_hash") or "")
    return Row(name, _state(home, summary, record), step, metrics, known, began, design=_design(tags))


def _design(tags: dict[str, Any]) -> str:
    method, branches, reducer = (str(tags.get(name, "")) for name in ("method", "branches", "reducer"))
    design = method if branches in ("", method) else f"{method}: {branches}"
    return design if reducer in ("", "none") else f"{design} with {reducer}"


def _state(home: Path, summary: dict[str, Any], record: dict[str, Any]) -> str:
    if summary:
        return "stopped" if summary["stopped"] else "finished"
    status = str(record.get("status", "")).lower()
    if status != "running":
        return status
    return "running" if _is_locked(home / LOCK) else "cut off"


def _is_locked(path: Path) -> bool:
    if not path.exists():
        return False
    lock = FileLock(path)
    taken = lock.take()
    lock.free()
    return not taken


def _recorded(metrics: Path) -> tuple[int | None, dict[str, float]]:
    """The last step of a metrics.jsonl, and every metric's last value."""
    step: int | None = None
    last: dict[str, float] = {}
    for at, values in read_metrics(metrics):
        step = at
        last |= values
    return step, last


def metrics_of(home: Path) -> dict[str, float]:
    """The metrics of the run in `home`, as it ended or so far. Raises NsaLabError where it cannot be read."""
    if not (home / "config.yaml").is_file():
        what = "holds no run (no config.yaml)" if home.is_dir() else no_folder(home)
        raise NsaLabError(f"{home} {what}; give a run's folder, such as runs/NAME for a NAME that `nsa-lab runs` lists")
    row = read_run(home, str(home))
    if row.fault:
        raise NsaLabError(f"{row.fault}; train it again with training.resume=false, or remove {home}")
    return row.metrics


def differing_settings(a: Path, b: Path) -> dict[str, tuple[Any, Any]]:
    """By dotted key the settings in which two runs differ; NOT_READ where one does not read it. Raises NsaLabError."""
    from nsa_lab.config import load_saved_config, read_settings

    one, other = (read_settings(load_saved_config(home / "config.yaml")) for home in (a, b))
    keys = [key for key in dict.fromkeys([*one, *other]) if one.get(key, NOT_READ) != other.get(key, NOT_READ)]
    return {key: (one.get(key, NOT_READ), other.get(key, NOT_READ)) for key in keys}
