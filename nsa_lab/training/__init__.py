"""Training: one LightningModule, one data module, one `run`."""

from nsa_lab.training.callbacks import Progress
from nsa_lab.training.run import RunResult, Trained, run

__all__ = ["Progress", "RunResult", "Trained", "run"]
