"""Procedural video tasks: rendered clips, written to files, with questions of known answers."""

from nsa_lab.tasks.base import Task
from nsa_lab.tasks.clips import TASKS, ensure_clips

__all__ = ["TASKS", "Task", "ensure_clips"]
