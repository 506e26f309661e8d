"""Procedural video tasks: rendered clips, written to files, with questions of known answers.

A new one is one file and one line here.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from nsa_lab.plugin import parts
from nsa_lab.tasks.base import Task
from nsa_lab.tasks.count import Count
from nsa_lab.tasks.direction import Direction
from nsa_lab.tasks.duration import Duration
from nsa_lab.tasks.gist import Gist
from nsa_lab.tasks.haystack import Haystack
from nsa_lab.tasks.needle import Needle
from nsa_lab.tasks.order import Order
from nsa_lab.tasks.pointer import Pointer
from nsa_lab.tasks.recall import Recall

TASKS: dict[str, type[Task]] = {
    "needle": Needle,
    "order": Order,
    "recall": Recall,
    "duration": Duration,
    "haystack": Haystack,
    "direction": Direction,
    "count": Count,
    "gist": Gist,
    "pointer": Pointer,
}


@parts(TASKS)
@dataclass
class TasksConfig:
    """The procedural tasks to train on. `seed` draws the clips, apart from the training seed; `fps` is their rate.

    `frames` is the length of every task's clips, in place of their own.
    """

    seed: int = 0
    fps: float = 2.0
    frames: int | None = None


def task_settings(tasks: TasksConfig, name: str) -> Any:
    """The settings of task `name`, its clips as long as `tasks` says."""
    own = getattr(tasks, name)
    return own if tasks.frames is None else dataclasses.replace(own, frames=tasks.frames)


__all__ = ["TASKS", "Task", "TasksConfig", "task_settings"]
