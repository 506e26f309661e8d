"""Progress on stderr: a bar that moves, or in a log file a line at first and every half minute."""

import math
import os
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

EVERY = 30.0
"""Seconds from one line to the next where stderr is no terminal."""
WIDTH = 160
"""Columns of such a line, unless the environment's COLUMNS says otherwise."""


class Bar(Progress):
    """One task, `what`, of `total` steps (None: not yet known) with a note behind it."""

    def __init__(self, what: str, total: int | None, disable: bool = False):
        own = None if sys.stderr.isatty() or "COLUMNS" in os.environ else WIDTH
        columns = (TextColumn(what), MofNCompleteColumn(), BarColumn(20), TextColumn("{task.fields[note]}"))
        console = Console(stderr=True, width=own)
        super().__init__(*columns, TimeRemainingColumn(), console=console, disable=disable)
        self.task = self.add_task(what, total=total, note="")
        self.told = -math.inf

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        if self.disable or self.console.is_terminal or time.monotonic() - self.told < EVERY:
            return
        self.told = time.monotonic()
        self.console.print(self.make_tasks_table(self.tasks))
