"""Procedural video tasks: rendered clips, written to files, with questions of known answers.

A new one is one file and one line here.
"""

from dataclasses import dataclass

from nsa_lab.plugin import parts
from nsa_lab.tasks.base import Task
from nsa_lab.tasks.duration import Duration
from nsa_lab.tasks.needle import Needle
from nsa_lab.tasks.order import Order
from nsa_lab.tasks.recall import Recall

TASKS: dict[str, type[Task]] = {
    "needle": Needle,
    "order": Order,
    "recall": Recall,
    "duration": Duration,
}


@parts(TASKS)
@dataclass
class TasksConfig:
    """The procedural tasks to train on. `seed` draws the clips, apart from the training seed; `fps` is their rate."""

    seed: int = 0
    fps: float = 2.0


__all__ = ["TASKS", "Task", "TasksConfig"]
