"""Lightning's logger interface over the project's tracker."""

from argparse import Namespace
from typing import Any

from lightning.pytorch.loggers import Logger

from nsa_lab.tracking import Tracker


class TrackerLogger(Logger):
    """Hands metrics to `tracker`, if any. Opening and finishing it stays with whoever made it."""

    def __init__(self, tracker: Tracker | None):
        super().__init__()
        self.tracker = tracker

    @property
    def name(self) -> str:
        return "nsa-lab"

    @property
    def version(self) -> str | None:
        return self.tracker.run_id if self.tracker else None

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self.tracker:
            self.tracker.metrics(metrics, step or 0)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        if self.tracker:
            self.tracker.params(vars(params) if isinstance(params, Namespace) else params)
