"""The tags that say what was run, with which code, on which host, and the files of a run's beginning."""

import dataclasses
import os
import socket
from pathlib import Path

from nsa_lab import files, origin
from nsa_lab.config import ExperimentConfig, config_hash, read_settings, to_yaml
from nsa_lab.config.rules import enabled_tasks
from nsa_lab.plugin import settings, switched_on
from nsa_lab.redact import hide
from nsa_lab.tracking.record import Record

LIBRARIES = ("torch", "transformers", "lightning", "optuna", "mlflow")


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
    """The method and the reducer, and of the method's sections which branches are on and which kinds are chosen."""
    method = config.attention.method
    tags = {"method": method, "branches": method, "reducer": config.attention.reducer.kind}
    own = settings(config.attention, "method")
    for field in dataclasses.fields(own):
        section = getattr(own, field.name)
        if hasattr(section, "PARTS"):
            tags[field.name] = "+".join(switched_on(section))
        elif hasattr(section, "CHOICES"):
            tags[field.name] = section.kind
    return tags


def origin_tags() -> dict[str, str]:
    """Tags of the host and the code: host, user, commit, library versions."""
    source = origin.source_state()
    return {
        "host": socket.gethostname(),
        "commit": source.commit,
        "dirty": str(bool(source.dirty)).lower(),
        "mlflow.source.name": "nsa-lab",
        "mlflow.source.git.commit": source.commit,
        "mlflow.user": os.environ.get("USER") or os.environ.get("LOGNAME") or "unknown",
        **{f"version.{name}": origin.version(name) for name in LIBRARIES},
    }


def describe_run(record: Record, config: ExperimentConfig) -> None:
    """Record what is known before the first step: params, tags, the config, the uncommitted changes."""
    record.params(read_settings(config))
    record.tags(design_tags(config))
    config_file, diff_file = record.directory / "config.yaml", record.directory / "dirty.diff"
    if not config_file.exists():
        files.write_text(config_file, to_yaml(config))
    record.artifact(config_file)
    if dirty := origin.source_state().dirty:
        files.write_text(diff_file, hide(dirty))
        record.artifact(diff_file)
