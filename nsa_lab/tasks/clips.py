"""A task's clips as files: written once, shared by every run, safe to interrupt and to start in parallel."""

import dataclasses
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from nsa_lab.errors import NsaLabError
from nsa_lab.files import clear_unfinished, digest, locked, write_json
from nsa_lab.progress import Bar
from nsa_lab.tasks import TASKS, TasksConfig, task_settings
from nsa_lab.tasks.base import Script

# Part of the folder's name: raise it whenever the same config gives other clips.
GENERATOR_VERSION = 1
SPLITS = ("train", "val")
ANNOTATIONS = "annotations.json"


def ensure_clips(name: str, tasks: TasksConfig, cache_dir: Path) -> dict[str, Path]:
    """The annotation file of each split (train, val) of task `name`, its clips beside it, written if missing.

    Several processes may call this at once: one writes, the others say that they wait. Clips that an interrupted
    process finished are kept. Raises NsaLabError where the cache cannot be written.
    """
    folder = clip_folder(name, tasks, cache_dir)
    annotations = {split: folder / split / ANNOTATIONS for split in SPLITS}
    try:
        if not _complete(name, tasks, folder):
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder / ".lock", f"waiting for another process that writes {folder}"):
                if not _complete(name, tasks, folder):
                    _write(name, tasks, folder)
    except OSError as error:
        raise NsaLabError(
            f"{name} clips cannot be written to {folder}: {error.strerror or error};"
            " free space there or set data.cache_dir to another folder"
        ) from error
    return annotations


def clip_folder(name: str, tasks: TasksConfig, cache_dir: Path) -> Path:
    """Where the clips of task `name` lie: one folder for each setting that changes them."""
    return Path(cache_dir) / "tasks" / f"{name}-{digest(_recipe(name, tasks))}"


def _recipe(name: str, tasks: TasksConfig) -> dict[str, Any]:
    config = dataclasses.asdict(task_settings(tasks, name))
    del config["enabled"]
    return {"task": name, "version": GENERATOR_VERSION, "seed": tasks.seed, "fps": tasks.fps, **config}


def _clip_names(name: str, tasks: TasksConfig, split: str) -> list[str]:
    return [_clip_name(index) for index in range(getattr(getattr(tasks, name), f"{split}_clips"))]


def _clip_name(index: int) -> str:
    return f"clip-{index:06d}.mp4"


def _missing(name: str, tasks: TasksConfig, folder: Path, split: str) -> list[int]:
    present = set(os.listdir(folder / split)) if (folder / split).is_dir() else set()
    return [index for index, clip in enumerate(_clip_names(name, tasks, split)) if clip not in present]


def _complete(name: str, tasks: TasksConfig, folder: Path) -> bool:
    return all(
        (folder / split / ANNOTATIONS).is_file() and not _missing(name, tasks, folder, split) for split in SPLITS
    )


def _write(name: str, tasks: TasksConfig, folder: Path) -> None:
    clear_unfinished(folder)
    write_json(folder / "recipe.json", _recipe(name, tasks))
    jobs = [(split, index) for split in SPLITS for index in _missing(name, tasks, folder, split)]
    with Bar(f"writing {len(jobs)} {name} clips", len(jobs)) as bar:
        for split, index in jobs:
            (folder / split).mkdir(exist_ok=True)
            _write_clip(name, tasks, split, index, folder / split)
            bar.update(bar.task, advance=1)
    for split in SPLITS:
        count = len(_clip_names(name, tasks, split))
        write_json(folder / split / ANNOTATIONS, [_row(name, tasks, split, index) for index in range(count)])


def _write_clip(name: str, tasks: TasksConfig, split: str, index: int, folder: Path) -> None:
    from nsa_lab.tasks.encode import write_video
    from nsa_lab.tasks.scene import render

    config, script = task_settings(tasks, name), _script(name, tasks, split, index)
    frames = render(
        config.frames,
        config.height,
        config.width,
        events=script.events,
        scenes=script.scenes,
        distractors=config.distractors,
        noise=config.noise,
        rng=_rng("scene", name, tasks, split, index),
    )
    write_video(folder / _clip_name(index), frames, tasks.fps)


def _script(name: str, tasks: TasksConfig, split: str, index: int) -> Script:
    return TASKS[name].script(task_settings(tasks, name), index, _rng("script", name, tasks, split, index))


def _rng(purpose: str, name: str, tasks: TasksConfig, split: str, index: int) -> np.random.Generator:
    return np.random.default_rng([tasks.seed, zlib.crc32(f"{purpose} {name} {split}".encode()), index])


def _row(name: str, tasks: TasksConfig, split: str, index: int) -> dict[str, Any]:
    """One annotation in LLaVA-Video-178K's form; `meta` holds the truth about the clip."""
    script = _script(name, tasks, split, index)
    conversation = []
    for number, (question, answer) in enumerate(script.turns):
        placeholder = "" if number else "<image>\n"
        conversation.append({"from": "human", "value": placeholder + question})
        conversation.append({"from": "gpt", "value": answer})
    events = [dataclasses.asdict(event) | {"seconds": event.start / tasks.fps} for event in script.events]
    scenes = [dataclasses.asdict(scene) | {"seconds": scene.start / tasks.fps} for scene in script.scenes]
    return {
        "id": f"{name}-{split}-{index:06d}",
        "video": _clip_name(index),
        "conversations": conversation,
        "data_source": "nsa-lab",
        "task": name,
        "meta": {"events": events} | ({"scenes": scenes} if scenes else {}),
    }
