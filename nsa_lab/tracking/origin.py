"""Where a run's numbers come from: tags that say what was run, with which code, and on which machine."""

import dataclasses
import functools
import importlib.metadata
import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from nsa_lab.config import ExperimentConfig, config_hash, read_settings, to_yaml
from nsa_lab.config.rules import enabled_tasks
from nsa_lab.plugin import settings, switched_on
from nsa_lab.tracking.record import Record

LIBRARIES = ("torch", "transformers", "lightning", "optuna", "mlflow")
DIFF_LIMIT = 1_000_000


@dataclass(frozen=True)
class Source:
    """The code that ran: its commit, and the uncommitted changes (a diff, then the untracked files)."""

    commit: str
    dirty: str


def design_tags(config: ExperimentConfig) -> dict[str, str]:
    """Tags to filter runs by: the attention design, the model, the tasks."""
    data = Path(config.data.annotations).name if config.data.annotations else ""
    return {
        "experiment_name": config.name,
        "config_hash": config_hash(config),
        **_attention_tags(config),
        "model": Path(config.model.path).name if config.model.path else config.model.size,
        "tasks": "+".join(enabled_tasks(config)) or data,
        "seed": str(config.seed),
        "blind": str(config.data.blind).lower(),
    }


def _attention_tags(config: ExperimentConfig) -> dict[str, str]:
    """The method, and of its sections which branches are on and which kinds are chosen."""
    method = config.attention.method
    tags = {"method": method, "branches": method}
    own = settings(config.attention, "method")
    for field in dataclasses.fields(own):
        section = getattr(own, field.name)
        if hasattr(section, "PARTS"):
            tags[field.name] = "+".join(switched_on(section))
        elif hasattr(section, "CHOICES"):
            tags[field.name] = section.kind
    return tags


def origin_tags() -> dict[str, str]:
    """Tags of the machine and the code: host, user, commit, library versions."""
    source = source_state()
    return {
        "host": socket.gethostname(),
        "commit": source.commit,
        "dirty": str(bool(source.dirty)).lower(),
        "mlflow.source.name": "nsa-lab",
        "mlflow.source.git.commit": source.commit,
        "mlflow.user": os.environ.get("USER") or os.environ.get("LOGNAME") or "unknown",
        **{f"version.{name}": _version(name) for name in LIBRARIES},
    }


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def describe_run(record: Record, config: ExperimentConfig) -> None:
    """Record what is known before the first step: params, tags, the config, the uncommitted changes."""
    record.add_params(read_settings(config))
    record.add_tags(design_tags(config))
    config_file, diff_file = record.directory / "config.yaml", record.directory / "dirty.diff"
    if not config_file.exists():
        config_file.write_text(to_yaml(config))
    record.add_artifact(config_file, "")
    if source_state().dirty:
        diff_file.write_text(source_state().dirty)
        record.add_artifact(diff_file, "")


@functools.cache
def source_state() -> Source:
    """Commit and uncommitted changes of the repository that holds this package; "unknown" outside of one."""
    root = Path(__file__).resolve().parent.parent
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return Source("unknown", "")
    diff = _git(root, "diff", "HEAD") or ""
    untracked = _git(root, "ls-files", "--others", "--exclude-standard") or ""
    if len(diff) > DIFF_LIMIT:
        diff = f"{diff[:DIFF_LIMIT]}\n[cut: the diff has {len(diff)} characters]\n"
    names = "".join(f"untracked: {name}\n" for name in untracked.splitlines())
    return Source(commit.strip(), diff + names)


def _git(root: Path, *arguments: str) -> str | None:
    """Output of a git command, or None where git or a repository is missing."""
    command = ["git", "-c", "core.quotepath=off", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None
