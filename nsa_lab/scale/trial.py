"""A trial's config from the storage of its study, or from the study's folder where that is all there is."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nsa_lab.config import ExperimentConfig, load_saved_config
from nsa_lab.config.sizes import RUN_CONFIG
from nsa_lab.errors import NsaLabError
from nsa_lab.runner.view import number
from nsa_lab.search.rows import Outcome, Row, read_outcome, trial_name
from nsa_lab.search.spec import design
from nsa_lab.search.storage import default_storage, load_study, open_storage, storage_faults

FRESH = {"model.path": None}
"""A design is promoted, not what its weights started from."""


@dataclass(frozen=True)
class Source:
    """A trial: what it is called in a sentence, its config, what it reached, and what of it was searched."""

    title: str
    config: ExperimentConfig
    values: str
    searched: Mapping[str, Any]


def find_trial(study: str, trial: int | None, storage: str | None, output: str) -> Source:
    """Trial `trial` of a study, by default the recommended one. study: its name, or its folder.

    Raises NsaLabError where there is no such study or trial, or the trial did not complete.
    """
    folder = Path(study)
    if not folder.is_dir():
        return _from_storage(study, trial, storage or default_storage(output))
    # {output.dir}/studies/NAME
    home = folder.resolve().parent.parent
    if storage or (home / "studies.db").is_file():
        return _from_storage(folder.resolve().name, trial, storage or default_storage(home))
    return _from_folder(folder, trial)


def _from_storage(name: str, trial: int | None, url: str) -> Source:
    file = Path(url.removeprefix("sqlite:///"))
    if url.startswith("sqlite:///") and not file.exists():
        raise NsaLabError(f"{file} does not exist: no sweep was run there; give --storage or output.dir=...")
    with storage_faults(url):
        outcome = read_outcome(load_study(open_storage(url), name))
    row = _row(outcome, trial)
    about = f"the recommended {row.title}" if trial is None else row.title
    values = ", ".join(f"{metric} {number(value)}" for metric, value in row.values.items())
    config = design(row.base, {**row.overrides, **FRESH}, f"{name}-{row.name}")
    return Source(f"{about} of study {name}", config, values, row.overrides)


def _row(outcome: Outcome, trial: int | None) -> Row:
    if trial is None:
        if outcome.best is None:
            raise NsaLabError(f"study {outcome.study} has no complete trial yet; run more of it")
        return outcome.best
    rows = [row for row in outcome.rows if row.number == trial and not row.reference]
    if not rows:
        known = sorted({row.number for row in outcome.rows if not row.reference})
        numbers = f"{known[0]} to {known[-1]}" if known else "none"
        raise NsaLabError(f"study {outcome.study} has no trial {trial}; it has {numbers}")
    done = [row for row in rows if row.state in ("complete", "reused")]
    if not done:
        why = f": {rows[-1].reason}" if rows[-1].reason else ""
        raise NsaLabError(f"trial {trial} of study {outcome.study} is {rows[-1].state}{why}; choose a complete one")
    return done[-1]


def _from_folder(folder: Path, trial: int | None) -> Source:
    """By the YAML that the study's report wrote, or the run's own."""
    names = (
        ["best.yaml"] if trial is None else [f"pareto/{trial_name(trial)}.yaml", f"{trial_name(trial)}/{RUN_CONFIG}"]
    )
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        raise NsaLabError(f"{folder} has neither a storage nor {' or '.join(names)}; give --storage URL")
    title, values = _head(file)
    about = f"the recommended {title}" if trial is None else title
    return Source(about or f"{file.stem} of {folder}", load_saved_config(file, FRESH), values, {})


def _head(file: Path) -> tuple[str, str]:
    """What a report's YAML says of its trial: its name in a sentence, and its values."""
    said: list[str] = []
    for line in file.read_text().splitlines():
        if not line.startswith("# ") or (said and said[-1].endswith(".")):
            break
        said.append(line.removeprefix("# "))
    title, _, values = " ".join(said).rstrip(".").partition(": ")
    return title[:1].lower() + title[1:], values
