"""The progress bar: step, loss, accuracy and steps per second on one line."""

from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nsa_lab.training.module import VideoModule


class ProgressBar(L.Callback):
    """Draws on stderr; `metrics` are read from the reporter's last report."""

    def __init__(self, steps: int):
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(20), TextColumn("{task.fields[note]}"))
        self.bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
        self.task = self.bar.add_task("train", total=steps, note="")

    def on_train_start(self, trainer: L.Trainer, module: VideoModule) -> None:  # type: ignore[override]
        self.first = trainer.global_step
        self.bar.update(self.task, completed=self.first)
        self.bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, module: VideoModule, *_: Any) -> None:  # type: ignore[override]
        speed = self.bar.tasks[self.task].speed
        note = " ".join(f"{name} {value:.4g}" for name, value in trainer.progress_bar_metrics.items())
        self.bar.update(self.task, completed=trainer.global_step, note=f"{note} {speed or 0:.1f} it/s")

    def on_train_end(self, trainer: L.Trainer, module: VideoModule) -> None:  # type: ignore[override]
        self.bar.stop()

    def on_exception(self, trainer: L.Trainer, module: VideoModule, exception: BaseException) -> None:  # type: ignore[override]
        self.bar.stop()
