"""Rows of a benchmark in a file of yours, asked and scored by lmms-eval's own task."""

import importlib.util
import json
import re
from pathlib import Path

from nsa_lab.errors import NsaLabError

KINDS = {".parquet": "parquet", ".json": "json", ".jsonl": "json"}
SPLIT = re.compile(r"^test_split: *['\"]?(\w+)", re.MULTILINE)


def local_task(task: str, rows: Path, folder: Path) -> str | None:
    """Write to `folder` a task that is lmms-eval's `task` over the file `rows`/TASK.parquet (.json, .jsonl); its name.

    None where there is no such file. It has a name of its own, since lmms-eval finds its own tasks first. Raises
    NsaLabError where `rows` is no folder.
    """
    if not rows.is_dir():
        raise NsaLabError(f"--rows {rows} is no folder; name one with files such as {task}.parquet")
    file = next((rows / f"{task}{ending}" for ending in KINDS if (rows / f"{task}{ending}").is_file()), None)
    if file is None:
        return None
    own = _file_of(task)
    split = SPLIT.search(own.read_text())
    assert split is not None, own
    name = f"{task}_local"
    config = {
        "include": str(own),
        "task": name,
        "dataset_path": KINDS[file.suffix],
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split[1]: str(file.resolve())}},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text(json.dumps(config))
    return name


def _file_of(task: str) -> Path:
    """Where lmms-eval keeps a task. Raises NsaLabError where it has none of that name."""
    spec = importlib.util.find_spec("lmms_eval")
    assert spec is not None and spec.submodule_search_locations
    found = next(Path(spec.submodule_search_locations[0], "tasks").rglob(f"{task}.yaml"), None)
    if found is None:
        raise NsaLabError(f"lmms-eval has no file {task}.yaml; rename the benchmark's file as lmms-eval calls the task")
    return found
