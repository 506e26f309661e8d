"""The progress bar: step, loss, accuracy and how fast it goes on one line."""

from collections.abc import Mapping
from typing import Any

import lightning as L

from nsa_lab.progress import Bar
from nsa_lab.training.callbacks import Reporter
from nsa_lab.training.module import VideoModule

RATES = {"tokens_per_second": "{:,.0f} tokens/s", "data_wait": "data wait {:.0%}", "mfu": "MFU {:.0%}"}
"""What the bar says of each `throughput/` metric."""


def rates(metrics: Mapping[str, float]) -> list[str]:
    """The rates among `metrics`, in words."""
    found = ((text, metrics.get(f"throughput/{name}")) for name, text in RATES.items())
    return [text.format(value) for text, value in found if value is not None]


class ProgressBar(L.Callback):
    """Draws on stderr: loss and accuracy of each step, and the rates of the last report of `reporter`."""

    def __init__(self, steps: int, reporter: Reporter):
        self.reporter = reporter
        self.bar = Bar("step", steps)

    def on_train_start(self, trainer: L.Trainer, module: VideoModule) -> None:  # type: ignore[override]
        self.first = trainer.global_step
        self.bar.update(self.bar.task, completed=self.first)
        self.bar.start()

    def on_train_batch_end(self, trainer: L.Trainer, module: VideoModule, *_: Any) -> None:  # type: ignore[override]
        speed = self.bar.tasks[self.bar.task].speed
        notes = [f"{name} {value:.4g}" for name, value in trainer.progress_bar_metrics.items()]
        notes += [f"{speed or 0:.1f} it/s", *rates(self.reporter.metrics)]
        self.bar.update(self.bar.task, completed=trainer.global_step, note=" ".join(notes))

    def on_train_end(self, trainer: L.Trainer, module: VideoModule) -> None:  # type: ignore[override]
        self.bar.stop()

    def on_exception(self, trainer: L.Trainer, module: VideoModule, exception: BaseException) -> None:  # type: ignore[override]
        self.bar.stop()
